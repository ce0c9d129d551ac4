"""Data of XCube: hierarchies of voxels from shapes, data sets of them on disk, and shapes made by rule."""

from xcube.data.hierarchy import Box, build_hierarchy

__all__ = ["Box", "build_hierarchy"]
