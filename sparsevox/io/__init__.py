"""Files to shapes and back, and shapes to voxels: `pip install 'sparsevox[io]'`."""

from sparsevox.io._trimesh import from_trimesh, to_trimesh
from sparsevox.io.sampling import fit, sample_surface
from sparsevox.io.voxelize import splat_attributes, voxelize

__all__ = ["fit", "from_trimesh", "sample_surface", "splat_attributes", "to_trimesh", "voxelize"]
