"""Tile shapes of convolutions: defaults by channels, dtype and device, and the results of autotuning (`sv.tune`).

The parameters that set the order in which floats are added (input channels per step, pairs per step, splits) follow
from shapes and dtype alone. A `Config` holds the rest, which does not change the bits of a result.
C input and D output channels of a group, K taps, T blocks of output rows.
"""

import functools
from typing import Any, NamedTuple

import torch

from sparsevox.kernels._launch import cdiv
from sparsevox.plans import TILE_ROWS

AMD = 0  # architecture number of every AMD GPU; those of NVIDIA are 80, 90, ...
SPLIT_PROGRAMS = 1024  # programs of a weight gradient, about: several per processor of a large GPU
SPLIT_ELEMENTS = 1 << 24  # elements of all partial sums of a weight gradient, at most


class Config(NamedTuple):
    """The part of a tile shape that does not change the bits of a result.

    rows: Output rows of a tile (conv), or input channels (conv_weight).
    columns: Output channels of a tile.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int


# Op ("conv" or "conv_weight"), C, D, groups, dtype, precision and architecture.
Key = tuple[str, int, int, int, torch.dtype, str, int]

tuned: dict[Key, Config] = {}


@functools.cache
def arch(device: torch.device) -> int:
    """Architecture number of a GPU; for the interpreter, that of an H100."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return AMD if torch.version.hip else 10 * major + minor


def uses_dot(c: int, groups: int, dtype: torch.dtype) -> bool:
    """Whether to use tl.dot. It takes at least 16 input channels (padded), and most devices have none for float64."""
    return dtype != torch.float64 and (groups == 1 or c >= 8)


def precision(dtype: torch.dtype, architecture: int) -> str:
    """Input precision of tl.dot: the one that PyTorch uses for float32 matrix products."""
    # This setting reflects the older switches too. Few AMD GPUs have TF32.
    if architecture != AMD and dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def step_channels(c: int, dtype: torch.dtype) -> int:
    """Input channels per step: a power of two, at least 16, with little padding."""
    widest = 64 if dtype.itemsize == 2 else 32
    sizes = [size for size in (64, 32, 16) if size <= widest]
    least = cdiv(c, 16) * 16
    return next(size for size in sizes if cdiv(c, size) * size * 4 <= least * 5 or size == 16)


def step_pairs(c: int, d: int, dtype: torch.dtype, dot: bool) -> int:
    """Pairs per step of the gradient of the weight."""
    if not dot:
        return 16
    return 64 if dtype.itemsize == 2 and not _one_by_one(c, d) else 32


def key(op: str, c: int, d: int, groups: int, dtype: torch.dtype, architecture: int) -> Key:
    """Key of the table of tuned tiles: everything that tiles and flags depend on."""
    return op, c, d, groups, dtype, precision(dtype, architecture), architecture


def config(kind: Key) -> Config:
    """The tuned tile, or the default one."""
    return tuned.get(kind) or _default_config(kind)


@functools.cache
def _default_config(kind: Key) -> Config:
    op, c, d, groups, dtype, how, architecture = kind
    if not uses_dot(c, groups, dtype):
        return Config(32 if op == "conv" else 1, _power(d * groups, 16, 64), num_warps=4, num_stages=2)
    # Products of float32 without tensor cores need registers; so do channels that are loaded one by one.
    scalar = _one_by_one(c, d)
    exact = dtype == torch.float32 and how == "ieee"
    widest = 128 >> (scalar + exact + (scalar and op == "conv_weight"))
    columns = _power(d, 16, widest)
    rows = min(widest, TILE_ROWS) if op == "conv" else _power(c, 16, widest)
    warps = 8 if rows * columns > (1 << 11 if scalar else 1 << 13) else 4
    # Loads form a chain, list to table to rows: of four pipeline stages, rows get two.
    return Config(rows, columns, warps, 2 if architecture == AMD else 4 if op == "conv" else 3)


def conv_flags(
    c: int, d: int, groups: int, dtype: torch.dtype, bias: bool, architecture: int
) -> tuple[int, int, dict[str, Any]]:
    """Rows of a tile, number of tiles along the output channels, and flags and options of `conv_kernel`.

    The flags are memoized by everything that they depend on. Do not write to them.
    """
    kind = key("conv", c, d, groups, dtype, architecture)
    return _conv_flags(kind, bias, config(kind))


@functools.cache
def _conv_flags(kind: Key, bias: bool, tile: Config) -> tuple[int, int, dict[str, Any]]:
    flags, d_tiles, rows = _common(kind, tile)
    rows = min(rows, TILE_ROWS)
    channels = step_channels(flags["C"], kind[4]) if flags["DOT"] else 1
    return rows, d_tiles, flags | {"BIAS": bias, "TILE": TILE_ROWS, "ROWS": rows, "CHANNELS": channels}


def weight_flags(c: int, d: int, groups: int, dtype: torch.dtype, architecture: int) -> tuple[int, dict[str, Any]]:
    """Number of tiles of the gradient of one tap, and flags and options of `conv_weight_kernel`, memoized likewise."""
    kind = key("conv_weight", c, d, groups, dtype, architecture)
    return _weight_flags(kind, config(kind))


@functools.cache
def _weight_flags(kind: Key, tile: Config) -> tuple[int, dict[str, Any]]:
    _, c, d, _, dtype, _, _ = kind
    flags, d_tiles, rows = _common(kind, tile)
    channels = rows if flags["DOT"] else 1
    pairs = step_pairs(c, d, dtype, flags["DOT"])
    return cdiv(c, channels) * d_tiles, flags | {"PAIRS": pairs, "CHANNELS": channels}


def _common(kind: Key, tile: Config) -> tuple[dict[str, Any], int, int]:
    """Flags and options of both kernels, number of tiles along the output channels, and rows of a tile."""
    rows, columns, warps, stages = tile
    _, c, d, groups, dtype, how, _ = kind
    dot = uses_dot(c, groups, dtype)
    d_tiles = groups * cdiv(d, columns) if dot else cdiv(d * groups, columns)
    flags = {"C": c, "D": d, "GROUPS": groups, "DOT": dot, "PRECISION": how, "COLUMNS": columns}
    return flags | {"num_warps": warps, "num_stages": stages}, d_tiles, rows


def split_blocks(blocks: int, taps: int, c: int, d: int, groups: int) -> int:
    """Blocks of pairs per program of the gradient of the weight: a function of shapes only."""
    tiles = taps * groups * cdiv(c, 128) * cdiv(d, 128)
    elements = taps * c * d * groups
    splits = max(1, min(SPLIT_PROGRAMS // max(tiles, 1), SPLIT_ELEMENTS // max(elements, 1)))
    return max(1, cdiv(blocks, splits))


def _one_by_one(c: int, d: int) -> bool:
    """Whether the channels of a row are loaded one by one, since rows are not aligned to vectors."""
    return c % 8 != 0 or d % 8 != 0


def _power(number: int, least: int, most: int) -> int:
    """The next power of two, between two others."""
    return min(max(1 << (number - 1).bit_length(), least), most)
