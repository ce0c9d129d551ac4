"""Reading, writing, voxelizing and meshing: `pip install 'sparsevox[io]'`.

- files: `load_mesh`, `save_mesh`, `load_points`, `save_points`, `load_voxels`, `save_voxels`, `load_volume`
- to voxels: `fit`, `sample_surface`, `voxelize`, `splat_attributes`
- to meshes: `to_mesh`, or its parts `voxel_faces`, `signed_field`, `solid_field`, `surface_nets`, `marching_cubes`
"""

from sparsevox.io.faces import voxel_faces
from sparsevox.io.marching_cubes import marching_cubes
from sparsevox.io.meshes import MeshInfo, describe, load_mesh, save_mesh
from sparsevox.io.points import load_points, save_points
from sparsevox.io.sampling import fit, sample_surface
from sparsevox.io.signed_field import signed_field, solid_field
from sparsevox.io.surface_nets import surface_nets
from sparsevox.io.surfaces import to_mesh
from sparsevox.io.trimesh import from_trimesh, to_trimesh
from sparsevox.io.volumes import load_volume, load_voxels, save_voxels
from sparsevox.io.voxelize import splat_attributes, voxelize

__all__ = [
    "MeshInfo",
    "describe",
    "fit",
    "from_trimesh",
    "load_mesh",
    "load_points",
    "load_volume",
    "load_voxels",
    "marching_cubes",
    "sample_surface",
    "save_mesh",
    "save_points",
    "save_voxels",
    "signed_field",
    "solid_field",
    "splat_attributes",
    "surface_nets",
    "to_mesh",
    "to_trimesh",
    "voxel_faces",
    "voxelize",
]
