"""Data of XCube: hierarchies of voxels from shapes, data sets of them on disk, and shapes made by rule."""

from xcube.data.build import Report, build
from xcube.data.converters import semantic_kitti_sources, shapenet_sources, voxel_sources
from xcube.data.dataset import Attribute, Card
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.data.loading import ShapeFolder
from xcube.data.sources import Source, file_sources, with_lists

__all__ = [
    "Attribute",
    "Box",
    "Card",
    "Report",
    "ShapeFolder",
    "Source",
    "build",
    "build_hierarchy",
    "file_sources",
    "semantic_kitti_sources",
    "shapenet_sources",
    "voxel_sources",
    "with_lists",
]
