"""Data of XCube: voxel hierarchies of shapes, and datasets of them on disk."""

from xcube.data.build import BuildReport, build
from xcube.data.converters import cube_sources, semantic_kitti_sources, shapenet_sources, voxel_sources
from xcube.data.dataset import About, Attribute, Card
from xcube.data.furniture import furniture_sources
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.data.loading import ShapeFolder
from xcube.data.occupancy import occ3d_sources, semantic_kitti_voxel_sources
from xcube.data.sh3f import sh3f_sources
from xcube.data.sources import Source, file_sources, with_lists

__all__ = [
    "About",
    "Attribute",
    "Box",
    "BuildReport",
    "Card",
    "ShapeFolder",
    "Source",
    "build",
    "build_hierarchy",
    "cube_sources",
    "file_sources",
    "furniture_sources",
    "occ3d_sources",
    "semantic_kitti_sources",
    "semantic_kitti_voxel_sources",
    "sh3f_sources",
    "shapenet_sources",
    "voxel_sources",
    "with_lists",
]
