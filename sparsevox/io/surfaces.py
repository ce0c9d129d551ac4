"""Meshing of voxels, with a method that suits their attributes.

N voxels, V vertices.
"""

from typing import Literal

from sparsevox.grid import Grid
from sparsevox.io import _cells
from sparsevox.io.faces import CARRIED, voxel_faces
from sparsevox.io.marching_cubes import marching_cubes
from sparsevox.io.signed_field import signed_field, solid_field
from sparsevox.io.surface_nets import surface_nets
from sparsevox.shapes import Mesh, Voxels

Method = Literal["auto", "faces", "nets", "marching_cubes"]
METHODS = ("auto", "faces", "nets", "marching_cubes")
SMOOTH = 2  # smoothing steps for occupancy


def to_mesh(voxels: Voxels | Grid, method: Method = "auto") -> Mesh:
    """Create a mesh of a single grid of voxels.

    - "faces": exposed faces of the voxels, merged into rectangles, by `voxel_faces`. "color" and "label" become face
      attributes.
    - "nets": a smooth surface by `surface_nets`, of `signed_field` if there are normals, else of `solid_field`. Each
      vertex takes "color" and "label" from the nearest voxel.
    - "marching_cubes": likewise by `marching_cubes`.
    - "auto": "nets" if there are normals, else "faces".

    Args:
        voxels: A single grid, with or without attributes.
        method: Method, one of the above.

    Returns:
        Vertices float64 [V, 3] in world coordinates, faces int64 [F, 3], oriented outward.

    Raises:
        ImportError: If scipy (for normals) or scikit-image (for marching cubes) is not installed.
        TypeError: If `voxels` is neither a Voxels nor a Grid.
        ValueError: If `voxels` is a batch of several grids, `method` is unknown, or normals are not [N, 3] or not
            finite.
    """
    if not isinstance(voxels, Voxels | Grid):
        raise TypeError(f"voxels must be a sparsevox.Voxels or Grid, got {type(voxels).__name__}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    voxels = voxels if isinstance(voxels, Voxels) else Voxels(voxels)
    grid = voxels.grid
    _cells.check_one("voxels", grid)
    oriented = "normal" in voxels.attributes
    if method == "faces" or (method == "auto" and not oriented):
        return voxel_faces(voxels)
    field = signed_field(voxels) if oriented else solid_field(grid)
    if method == "marching_cubes":
        mesh = marching_cubes(field)
    else:
        mesh = surface_nets(field, smooth=0 if oriented else SMOOTH)
    names = [name for name in CARRIED if name in voxels.attributes]
    if names:
        nearest = grid.nearest(mesh.vertices)
        mesh = Mesh(mesh.vertices, mesh.faces, {name: voxels.attributes[name][nearest] for name in names})
    return mesh
