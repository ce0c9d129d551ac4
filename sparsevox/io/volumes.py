"""Reading and writing voxels, in files that NumPy can read without this library.

N voxels, B grids, C channels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsevox import checks
from sparsevox.files import atomic_write, prefix_errors
from sparsevox.grid import Grid, Scale
from sparsevox.io._files import (
    FilePath,
    existing,
    read_numpy,
    rowwise,
    suffix_of,
    to_array,
    to_tensor,
    write_npz,
)
from sparsevox.io._vox import read_vox, write_vox
from sparsevox.shapes import Voxels

Array = NDArray[Any]

VERSION = 1
ATTRIBUTE = "attribute:"  # prefix of the attribute names in a file
GRAY = 190  # of voxels without colors, in files that need colors
COORDS = ("ijk", "coords")  # accepted names of the array of coordinates in files of other programs


def save_voxels(voxels: Voxels, path: FilePath, *, half: bool = False, compress: bool = True) -> None:
    """Save a batch of voxels to a .npz file, or one grid to a .vox file, atomically. Equal voxels give equal bytes.

    NumPy can read a .npz file without this library. It holds these arrays, in the row order of the grid:

    - "sparsevox_voxels": the version of the format, 1
    - "ijk": coordinates, integers [N, 3] of the smallest dtype that holds them
    - "offsets": int64 [B + 1], the first row of each grid, then N
    - "voxel_size", "origin": float64 [3]; the center of voxel ijk lies at origin + voxel_size * ijk
    - "attribute:NAME": the attribute NAME, [N] or [N, C]; bfloat16 becomes float32

    A .vox file of MagicaVoxel holds the coordinates, as places in its scene, and "color"; voxels without it are gray.
    It has no voxel size, origin or other attributes, and 255 colors: if there are more, each channel is rounded to as
    many bits as give at most 255.

    Args:
        voxels: Voxels to save.
        path: File to write. Must end in .npz or .vox.
        half: Whether to store floating-point attributes as float16. They are also loaded as float16.
        compress: Whether to compress the arrays.

    Raises:
        ValueError: If the suffix is another, the name of an attribute is empty, not printable or contains a slash, a
            value exceeds the range of float16, or a .vox file would hold several grids or colors that are no floats
            [N, 3] in [0, 1].
    """
    grid = voxels.grid
    if suffix_of(path, ".npz", ".vox") == ".vox":
        data = write_vox(to_array(grid.ijk), _bytes_of_color(voxels))
        with atomic_write(path) as file:
            file.write(data)
        return
    arrays = {
        "sparsevox_voxels": np.array(VERSION),
        "ijk": _smallest(to_array(grid.ijk)),
        "offsets": to_array(grid.offsets),
        "voxel_size": np.array(grid.voxel_size),
        "origin": np.array(grid.origin),
    }
    for name, value in voxels.attributes.items():
        arrays[ATTRIBUTE + name] = to_array(_halved(name, value) if half and value.is_floating_point() else value)
    write_npz(path, arrays, compress)


def load_voxels(path: FilePath, *, voxel_size: Scale | None = None, origin: Scale | None = None) -> Voxels:
    """Load a batch of voxels from a .npz, .npy or .vox file.

    Files of `save_voxels` are restored bit for bit. Files of other programs may hold

    - .npy: coordinates (i, j, k) of a single grid, integers [N, 3], or (b, i, j, k), [N, 4]
    - .npz: such an array named "ijk" or "coords"; other numeric arrays [N] or [N, C] become attributes

    with rows in any order.

    A .vox file of MagicaVoxel becomes one grid with "color", float32 [N, 3]: all models at their places in the scene,
    without hidden ones. The z axis points up. Where models overlap, the first one counts. Of an animated model, the
    first frame is read, but a file without a scene that holds several models becomes a batch of them.

    Args:
        path: File to load.
        voxel_size: Edge lengths of a voxel in world units, one number or one per axis, if the file does not store them.
            By default 1.
        origin: World position of the center of voxel (0, 0, 0), if the file does not store it. By default 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is unknown, the file is damaged, has another version or holds pickled Python objects,
            a voxel occurs twice or is out of range, or `voxel_size` or `origin` is given for a file that stores them.
            The message starts with the path.
    """
    file = existing(path, ".npz", ".npy", ".vox")
    size, start = (1.0 if voxel_size is None else voxel_size), (0.0 if origin is None else origin)
    with prefix_errors(path):
        if file.suffix.lower() == ".vox":
            coords, color = (torch.from_numpy(each) for each in read_vox(file.read_bytes()))
            return _in_grid_order(coords, None if len(coords) else 1, size, start, {"color": color / 255})
        arrays = read_numpy(file)
        if "sparsevox_voxels" not in arrays:
            coords, attributes = _foreign(arrays)
            return _in_grid_order(coords, None, size, start, attributes)
        if voxel_size is not None or origin is not None:
            raise ValueError("voxel_size and origin must be None for a file that stores them, as this one does")
        return _own(arrays)


def load_volume(
    path: FilePath,
    *,
    name: str | None = None,
    above: float | None = None,
    below: float | None = None,
    voxel_size: Scale = 1.0,
    origin: Scale = 0.0,
) -> Voxels:
    """Load the occupied voxels of a dense volume [X, Y, Z] or [B, X, Y, Z] from a .npy or .npz file.

    - bool: voxels that are True
    - integers: voxels that are not 0, with their value as "label", int64 [N]
    - floats: voxels with `above` < value < `below`, with their value as "value", [N, 1]. Use `above=0.5` for
      occupancy, `below=0.0` for the inside of a signed distance field, and both for a band around its surface. NaN is
      never occupied.

    Args:
        path: File to load.
        name: Name of the array, if a .npz file holds several.
        above: Lower limit of floats, exclusive.
        below: Upper limit of floats, exclusive.
        voxel_size: Edge lengths of a voxel in world units, one number or one per axis.
        origin: World position of the center of the first voxel of the volume, which gets coordinates (0, 0, 0).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is unknown, the file is damaged or holds pickled Python objects, the array does not
            exist or is not a volume, or limits are missing for floats or given for other dtypes. The message starts
            with the path.
    """
    file = existing(path, ".npz", ".npy")
    with prefix_errors(path):
        arrays = read_numpy(file)
        chosen = next(iter(arrays)) if name is None and len(arrays) == 1 else name
        if chosen not in arrays:
            raise ValueError(f"name must be one of {sorted(arrays)}, got {name!r}")
        volume = arrays[chosen]
        if volume.ndim not in (3, 4) or volume.dtype.kind not in "biuf":
            raise ValueError(
                f"the volume must be real numbers of shape [X, Y, Z] or [B, X, Y, Z], got {volume.dtype} "
                f"{list(volume.shape)}"
            )
        if (volume.dtype.kind == "f") == (above is None and below is None):
            raise ValueError(f"above or below must be given for floats and only for floats, got {volume.dtype}")
        values = to_tensor("volume", volume if volume.ndim == 4 else volume[None])
        if values.is_floating_point():
            mask = torch.ones_like(values, dtype=torch.bool) if above is None else values > above
            mask = mask if below is None else mask & (values < below)
        else:
            mask = values != 0
        grid = Grid.from_dense(mask, voxel_size=voxel_size, origin=origin)
        if values.dtype == torch.bool:
            return Voxels(grid)
        rows = values[tuple(grid.coords.long().unbind(1))]
        return Voxels(grid, {"value": rows[:, None]} if values.is_floating_point() else {"label": rows.long()})


def _bytes_of_color(voxels: Voxels) -> Array:
    """The colors as bytes, uint8 [N, 3]; gray without any."""
    count, color = voxels.num_voxels, voxels.attributes.get("color")
    if voxels.batch_size != 1:
        raise ValueError(f"voxels must be one grid for a .vox file, got a batch of {voxels.batch_size}")
    if color is None:
        return np.full((count, 3), GRAY, np.uint8)
    given = f"{color.dtype} {list(color.shape)}"
    if not color.is_floating_point() or color.shape != (count, 3):
        raise ValueError(f"color must be floats of shape [{count}, 3], got {given}")
    if count and not bool(((color >= 0) & (color <= 1)).all()):  # also if it is NaN
        raise ValueError(f"color must lie in [0, 1], got {float(color.min())} to {float(color.max())}")
    return to_array((color.detach().double() * 255).round().to(torch.uint8))


def _smallest(ijk: Array) -> Array:
    for dtype in (np.int8, np.int16):
        if not ijk.size or np.iinfo(dtype).min <= ijk.min() <= ijk.max() <= np.iinfo(dtype).max:
            return ijk.astype(dtype)
    return ijk


def _halved(name: str, value: Tensor) -> Tensor:
    half = value.detach().half()
    if bool((half.isinf() & value.isfinite()).any()):
        raise ValueError(f"attribute {name!r} must fit in float16, got {float(value.abs().nan_to_num().max())}")
    return half


def _own(arrays: Mapping[str, Array]) -> Voxels:
    version = arrays["sparsevox_voxels"]
    if version.shape or version.dtype.kind not in "iu" or version != VERSION:
        raise ValueError(f"the version of the file format must be {VERSION}, got {version}")
    missing = [name for name in ("ijk", "offsets", "voxel_size", "origin") if name not in arrays]
    if missing:
        raise ValueError(f"the file must have the array {missing[0]}, got {sorted(arrays)}")
    ijk = checks.integers("ijk", checks.shape("ijk", to_tensor("ijk", arrays["ijk"]), "N", 3))
    offsets = checks.shape("offsets", to_tensor("offsets", arrays["offsets"]), "B + 1")
    sizes = checks.integers("offsets", offsets).diff()
    if not len(offsets) or bool((sizes < 0).any()) or offsets[0] != 0:
        raise ValueError("offsets must start with 0 and never decrease")
    if offsets[-1] != len(ijk):
        raise ValueError(f"offsets must end with the number of rows of ijk, {len(ijk)}, got {int(offsets[-1])}")
    batch = torch.arange(len(sizes)).repeat_interleave(sizes)
    coords = torch.cat([batch[:, None], ijk.long()], 1)
    attributes = {
        name.removeprefix(ATTRIBUTE): to_tensor(name, array)
        for name, array in arrays.items()
        if name.startswith(ATTRIBUTE)
    }
    size, start = (arrays[name].tolist() for name in ("voxel_size", "origin"))
    return _in_grid_order(coords, len(sizes), size, start, attributes)


def _foreign(arrays: Mapping[str, Array]) -> tuple[Tensor, dict[str, Tensor]]:
    """Read coordinates and attributes from a file of another program."""
    found = [name for name in ("", *COORDS) if name in arrays]
    if len(found) != 1:
        raise ValueError(f"exactly one array must be named {' or '.join(COORDS)}, got {sorted(arrays)}")
    coords = to_tensor(found[0] or "coords", arrays[found[0]])
    others = {name: array for name, array in arrays.items() if name not in found}
    return coords, rowwise(others, len(coords) if coords.ndim else 0)


def _in_grid_order(
    coords: Tensor, batch_size: int | None, voxel_size: Scale, origin: Scale, attributes: Mapping[str, Tensor]
) -> Voxels:
    grid = Grid.from_coords(coords, batch_size=batch_size, voxel_size=voxel_size, origin=origin)
    rows = grid.index(coords)
    if grid.num_voxels != len(coords):
        row = int((torch.bincount(rows) > 1).int().argmax())
        raise ValueError(f"voxels must be distinct, got {tuple(grid.coords[row].tolist())} more than once")
    ordered: dict[str, Tensor] = {}
    for name, value in attributes.items():
        if value.ndim not in (1, 2) or len(value) != len(coords):
            raise ValueError(
                f"attribute {name!r} must have shape [{len(coords)}] or [{len(coords)}, C], got {list(value.shape)}"
            )
        ordered[name] = torch.empty_like(value)
        ordered[name][rows] = value
    return Voxels(grid, ordered)
