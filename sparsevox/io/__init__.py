"""Files to shapes and back, and shapes to voxels: `pip install 'sparsevox[io]'`."""

from sparsevox.io._trimesh import from_trimesh, to_trimesh
from sparsevox.io.meshes import MeshFacts, describe, load_mesh, save_mesh
from sparsevox.io.points import load_points, save_points
from sparsevox.io.sampling import fit, sample_surface
from sparsevox.io.volumes import load_volume, load_voxels, save_voxels
from sparsevox.io.voxelize import splat_attributes, voxelize

__all__ = [
    "MeshFacts",
    "describe",
    "fit",
    "from_trimesh",
    "load_mesh",
    "load_points",
    "load_volume",
    "load_voxels",
    "sample_surface",
    "save_mesh",
    "save_points",
    "save_voxels",
    "splat_attributes",
    "to_trimesh",
    "voxelize",
]
