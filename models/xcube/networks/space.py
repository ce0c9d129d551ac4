"""The space a denoiser computes on: sparse grids or dense volumes. All code that depends on it is in this file.

A field is a SparseTensor, or a volume [B, C, X, Y, Z]. N voxels, B grids, C channels, S tokens, H heads; `...` stands
for N, or for B, X * Y * Z.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from sparsevox import Grid, SparseTensor

Field = Any  # a SparseTensor of `Sparse`, a Tensor of `Dense`
Box = tuple[list[int], list[int]]

_boxes: WeakKeyDictionary[Grid, Box] = WeakKeyDictionary()  # lower and upper corners of grids, found by `_box`


@dataclass(frozen=True)
class Context:
    """Tokens to attend to, in the layout of a space.

    tokens: The tokens of all grids, one grid after the other, [S, C] (`Sparse`), or padded, [B, S, C] (`Dense`).
    extent: The first token of each grid and the end, integers [B + 1] (`Sparse`), or which tokens exist, bool [B, S]
        (`Dense`).
    """

    tokens: Tensor
    extent: Tensor


class Space(ABC):
    """Operations on fields."""

    @abstractmethod
    def from_sparse(self, x: SparseTensor) -> Field:
        """Convert a sparse tensor to a field."""

    @abstractmethod
    def to_sparse(self, field: Field, like: SparseTensor) -> SparseTensor:
        """Convert a field to a sparse tensor on the voxels of `like`."""

    @abstractmethod
    def conv(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """Make a convolution with kernel size 3; its weights are [out, in, 3, 3, 3] with axes i, j, k."""

    @abstractmethod
    def norm(self, channels: int, groups: int, eps: float = 1e-5) -> torch.nn.Module:
        """Make a GroupNorm with at most `groups` groups: the largest number that divides both `groups` and `channels`.

        Its statistics are those of each grid.
        """

    @abstractmethod
    def map(self, field: Field, function: Callable[[Tensor], Tensor]) -> Field:
        """Apply an elementwise function."""

    @abstractmethod
    def modulate(self, field: Field, values: Tensor) -> Field:
        """Compute `field * (1 + scale) + shift` with one scale and shift per grid: values [B, 2 C], scales first."""

    @abstractmethod
    def cat(self, first: Field, second: Field) -> Field:
        """Concatenate the channels of two fields of the same voxels."""

    @abstractmethod
    def down(self, field: Field) -> Field:
        """Average blocks of 2^3 voxels."""

    @abstractmethod
    def up(self, field: Field, like: Field) -> Field:
        """Copy the features of every voxel to its children that exist in `like`."""

    @abstractmethod
    def rows(self, field: Field) -> Tensor:
        """Return the features as rows [..., C]."""

    @abstractmethod
    def replace(self, field: Field, rows: Tensor) -> Field:
        """Make a field on the same voxels from rows [..., C], the inverse of `rows`."""

    @abstractmethod
    def context(self, tokens: Tensor, mask: Tensor) -> Context:
        """Make a context from padded tokens [B, S, C] and which of them exist, bool [B, S]."""

    @abstractmethod
    def attend(self, field: Field, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context | None) -> Tensor:
        """Attend from queries [..., C] to the keys of the same grid: those of the context, or else of the field itself.

        A grid without keys gets 0.
        """


class Sparse(Space):
    """Fields on the voxels of grids. `count`, that of `sv.nn.AvgPool3d`, chooses the divisor of `down`."""

    def __init__(self, count: Literal["active", "window"] = "active") -> None:
        self._pool, self._upsample = sv.nn.AvgPool3d(2, count=count), sv.nn.Upsample(2)

    def from_sparse(self, x: SparseTensor) -> SparseTensor:
        return x

    def to_sparse(self, field: SparseTensor, like: SparseTensor) -> SparseTensor:
        return field

    def conv(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """Make a submanifold convolution."""
        return sv.nn.Conv3d(in_channels, out_channels, 3)

    def norm(self, channels: int, groups: int, eps: float = 1e-5) -> torch.nn.Module:
        """Make a GroupNorm over the voxels that exist."""
        return sv.nn.GroupNorm(math.gcd(groups, channels), channels, eps)

    def map(self, field: SparseTensor, function: Callable[[Tensor], Tensor]) -> SparseTensor:
        return field.map(function)

    def modulate(self, field: SparseTensor, values: Tensor) -> SparseTensor:
        scale, shift = values.to(field.dtype).chunk(2, 1)  # each [B, C]
        factor, shift = sv.ops.broadcast(torch.cat([scale + 1, shift], 1), field.grid).chunk(2, 1)  # each [N, C]
        return field.replace(torch.addcmul(shift, field.feats, factor))

    def cat(self, first: SparseTensor, second: SparseTensor) -> SparseTensor:
        return sv.cat([first, second])

    def down(self, field: SparseTensor) -> SparseTensor:
        y: SparseTensor = self._pool(field)
        return y

    def up(self, field: SparseTensor, like: SparseTensor) -> SparseTensor:
        y: SparseTensor = self._upsample(field, grid=like.grid)
        return y

    def rows(self, field: SparseTensor) -> Tensor:
        return field.feats

    def replace(self, field: SparseTensor, rows: Tensor) -> SparseTensor:
        return field.replace(rows)

    def context(self, tokens: Tensor, mask: Tensor) -> Context:
        ends = mask.sum(1).cumsum(0)
        return Context(tokens[mask], functional.pad(ends, (1, 0)))

    def attend(
        self, field: SparseTensor, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context | None
    ) -> Tensor:
        q, k, v = (rearrange(rows, "n (h c) -> n h c", h=heads) for rows in (q, k, v))
        extent = None if context is None else context.extent
        return rearrange(sv.ops.attention(q, k, v, field.grid.offsets, extent), "n h c -> n (h c)")


class Dense(Space):
    """Fields on volumes, which are full boxes of one size. Blocks of 2^3 voxels start at the lower corner."""

    def from_sparse(self, x: SparseTensor) -> Tensor:
        """Convert a sparse tensor to a volume.

        Raises:
            ValueError: If the grids of the batch are not the same full box.
        """
        lower, upper = _box(x.grid)
        return x.dense(lower, upper)

    def to_sparse(self, field: Tensor, like: SparseTensor) -> SparseTensor:
        return like.replace(sv.ops.from_dense(field, like.grid, _box(like.grid)[0]))

    def conv(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """Make a convolution with zeros around the box."""
        return torch.nn.Conv3d(in_channels, out_channels, 3, padding=1)

    def norm(self, channels: int, groups: int, eps: float = 1e-5) -> torch.nn.Module:
        return torch.nn.GroupNorm(math.gcd(groups, channels), channels, eps)

    def map(self, field: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(field)

    def modulate(self, field: Tensor, values: Tensor) -> Tensor:
        scale, shift = rearrange(values.to(field.dtype), "b (two c) -> two b c 1 1 1", two=2)
        return torch.addcmul(shift, field, scale + 1)

    def cat(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second], 1)

    def down(self, field: Tensor) -> Tensor:
        return functional.avg_pool3d(field, 2)

    def up(self, field: Tensor, like: Tensor) -> Tensor:
        return functional.interpolate(field, like.shape[2:], mode="nearest")

    def rows(self, field: Tensor) -> Tensor:
        return rearrange(field, "b c x y z -> b (x y z) c")

    def replace(self, field: Tensor, rows: Tensor) -> Tensor:
        # Contiguous, since oneDNN is up to twice as fast on contiguous volumes as on those with the channels last.
        return rows.transpose(1, 2).contiguous().unflatten(2, field.shape[2:])

    def context(self, tokens: Tensor, mask: Tensor) -> Context:
        return Context(tokens, mask)

    def attend(self, field: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context | None) -> Tensor:
        q, k, v = (rearrange(rows, "b n (h c) -> b h n c", h=heads) for rows in (q, k, v))
        if context is None:
            return rearrange(functional.scaled_dot_product_attention(q, k, v), "b h n c -> b n (h c)")
        some = context.extent.any(1)[:, None]  # [B, 1]
        mask = (context.extent | ~some)[:, None, None]  # [B, 1, 1, S]; a softmax over nothing is not a number
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return rearrange(out, "b h n c -> b n (h c)") * some[:, :, None]


def _box(grid: Grid) -> Box:
    """The lower and upper corner of the full box that every grid of a batch is.

    Raises:
        ValueError: If the grids are not full boxes, all the same.
    """
    if grid in _boxes:
        return _boxes[grid]
    corners: list[list[list[int]]] = torch.stack(grid.bounds(), 1).tolist()  # [B, 2, 3]
    if corners:
        lower, upper = corners[0]
        volume = math.prod(b - a for a, b in zip(lower, upper, strict=True))
        if corners.count(corners[0]) == len(corners) and volume * len(corners) == grid.num_voxels:
            return _boxes.setdefault(grid, (lower, upper))
    raise ValueError(f"x of a dense network must be on full boxes, all the same, got {grid!r}")
