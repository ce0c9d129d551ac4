"""Group norm over the rows of each item of a batch, from sums over chunks of rows.

Small features are processed whole, in as few calls as possible; others block by block. Rows are made contiguous first,
since the order of additions in `torch.sum` depends on strides, and without contiguous rows on the number of threads.
N voxels, B grids, C channels, G groups, T chunks (up to CHUNK rows of one item).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 128  # rows of one sum, where a block has several items
BLOCK = 32 * CHUNK  # rows that are processed together: they fit in the cache of a CPU core
WHOLE = 1 << 20  # features with up to this many elements are processed whole
LONG = 64  # rows of an item, on average, from which on it has calls of its own


class Items(ABC):
    """The items of a batch whose rows are processed whole."""

    def __init__(self, lengths: list[int], like: Tensor, num_groups: int) -> None:
        self.lengths, self.num_groups = lengths, num_groups
        # Elements of a group in each item, at least 1, and whether an item has no rows: [B, 1].
        sizes = [max(length, 1) * (like.shape[1] // num_groups) for length in lengths]
        self.sizes = torch.tensor(sizes, dtype=torch.float64, device=like.device)[:, None]
        self.empty = None if all(lengths) else self.sizes.new_tensor(lengths)[:, None] == 0

    @classmethod
    def of(cls, offsets: Tensor, feats: Tensor, num_groups: int) -> "Items":
        """The items that `offsets` divide the features into."""
        bounds = offsets.tolist()
        lengths = [last - first for first, last in pairwise(bounds)]
        # PyTorch divides the rows of a single column among its threads, and bits would depend on their number.
        if feats.shape[1] > 1 and len(lengths) * LONG <= feats.shape[0]:
            return Slices(lengths, feats, num_groups)
        return Chunks(bounds, lengths, feats, num_groups)

    @abstractmethod
    def sums(self, rows: Tensor) -> Tensor:
        """Sums over the rows [N, C] of each item: float64 [B, C]."""

    @abstractmethod
    def center(self, rows: Tensor, means: Tensor) -> Tensor:
        """Compute `rows - means`, for means [B, G]: [N, C]."""

    @abstractmethod
    def scale_and_shift(self, rows: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """Write `rows * scale + shift` to `out` [N, C], for scale and shift [B, C]."""

    @abstractmethod
    def add_scaled(self, rows: Tensor, scale: Tensor, out: Tensor) -> Tensor:
        """Add `rows * scale` to `out` [N, C], for a scale [B, C]."""

    def group_means(self, rows: Tensor) -> Tensor:
        """Means over the rows [N, C] of each item and the channels of each group: float64 [B, G], 0 in empty items."""
        return _group_sums(self.sums(rows), self.num_groups) / self.sizes


class Slices(Items):
    """Items with many rows each: an operation is one call per item."""

    def sums(self, rows: Tensor) -> Tensor:
        """Sums over the rows [N, C] of each item: float64 [B, C]."""
        sums = rows.new_empty((len(self.lengths), rows.shape[1]))
        for part, total in zip(rows.split(self.lengths), sums.unbind(0), strict=True):
            torch.sum(part, 0, out=total)
        return sums.double()

    def center(self, rows: Tensor, means: Tensor) -> Tensor:
        """Compute `rows - means`, for means [B, G]: [N, C]."""
        out, centers = torch.empty_like(rows), _by_channel(means, rows.shape[1])
        for part, center, result in self._by_item(rows, centers, out):
            torch.sub(part, center, out=result)
        return out

    def scale_and_shift(self, rows: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """Write `rows * scale + shift` to `out` [N, C], for scale and shift [B, C]."""
        for (part, factor, result), start in zip(self._by_item(rows, scale, out), shift.unbind(0), strict=True):
            torch.addcmul(start, part, factor, out=result)
        return out

    def add_scaled(self, rows: Tensor, scale: Tensor, out: Tensor) -> Tensor:
        """Add `rows * scale` to `out` [N, C], for a scale [B, C]."""
        for part, factor, result in self._by_item(rows, scale, out):
            result.addcmul_(part, factor)
        return out

    def _by_item(self, rows: Tensor, values: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return zip(rows.split(self.lengths), values.unbind(0), out.split(self.lengths), strict=True)


class Chunks(Items):
    """Items with few rows each: an operation is one call, on values that are copied to each row."""

    def __init__(self, bounds: list[int], lengths: list[int], feats: Tensor, num_groups: int) -> None:
        super().__init__(lengths, feats, num_groups)
        device, count = feats.device, feats.shape[0]
        chunks = [range(first, last, CHUNK) for first, last in pairwise(bounds)]
        self.rows = torch.arange(count, device=device)
        # First row of each chunk [T + 1], and first chunk of each item [B + 1], each with the end; item of each row.
        self.starts = torch.tensor([*chain(*chunks), count], device=device)
        self.ranges = torch.tensor([*accumulate(map(len, chunks), initial=0)], device=device)
        counts = torch.tensor(lengths, dtype=torch.int64, device=device)
        self.owners = torch.repeat_interleave(counts, output_size=count)

    def sums(self, rows: Tensor) -> Tensor:
        """Sums over the rows [N, C] of each item: float64 [B, C]."""
        chunks = _bags(rows, self.starts, self.rows).double()
        return torch.segment_reduce(chunks, "sum", offsets=self.ranges, axis=0, unsafe=True)

    def center(self, rows: Tensor, means: Tensor) -> Tensor:
        """Compute `rows - means`, for means [B, G]: [N, C]."""
        centers = _by_channel(means, rows.shape[1]).index_select(0, self.owners)
        return torch.sub(rows, centers, out=centers)

    def scale_and_shift(self, rows: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """Write `rows * scale + shift` to `out` [N, C], for scale and shift [B, C]."""
        return self.add_scaled(rows, scale, torch.index_select(shift, 0, self.owners, out=out))

    def add_scaled(self, rows: Tensor, scale: Tensor, out: Tensor) -> Tensor:
        """Add `rows * scale` to `out` [N, C], for a scale [B, C]."""
        return out.addcmul_(rows, scale.index_select(0, self.owners))


class Block(NamedTuple):
    """Rows from first to last, exclusive, with their chunks. A block of a single item is one chunk."""

    first: int
    last: int
    items: Tensor  # item of each chunk
    lengths: Tensor  # number of rows of each chunk
    owners: Tensor | None  # chunk of each row; None if there is one chunk

    def spread_chunks(self, values: Tensor) -> Tensor:
        """Copy values [chunks, C] to the rows of the block: [rows, C], or [1, C] if there is one chunk."""
        return values if self.owners is None else values.index_select(0, self.owners)

    def spread(self, values: Tensor) -> Tensor:
        """Copy values [B, C], or [1, C], to the rows of the block."""
        return values if values.shape[0] == 1 else self.spread_chunks(values.index_select(0, self.items))

    def sums(self, rows: Tensor) -> Tensor:
        """Sums over the rows [rows, C] of each chunk."""
        if self.owners is None:
            return rows.sum(0, keepdim=True)
        return _bags(rows, torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0)))


def group_norm(
    feats: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized features [N, C], and mean and 1 / standard deviation [B, G], 0 in empty items."""
    if feats.numel() <= WHOLE:
        return _normalize_whole(feats, offsets, weight, bias, num_groups, eps)
    exact, channels = torch.promote_types(feats.dtype, torch.float32), feats.shape[1]
    mean, rstd = (part.to(exact) for part in _statistics(feats, offsets, num_groups, eps))
    scale = _by_channel(rstd, channels)
    scale = scale if weight is None else scale * weight
    shift = None if bias is None else bias.to(exact)[None]
    return _affine(feats, None, offsets, _by_channel(mean, channels), (None, scale.to(exact), shift)), mean, rstd


def group_norm_backward(
    grad: Tensor, feats: Tensor, offsets: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features [N, C], and of weight and bias [C] in the dtype of the statistics."""
    if feats.numel() <= WHOLE:
        return _differentiate_whole(grad, feats, offsets, weight, mean, rstd)
    channels, num_groups = feats.shape[1], mean.shape[1]
    size = offsets.diff()[:, None].clamp(min=1) * (channels // num_groups)
    center, scale = _by_channel(mean, channels), _by_channel(rstd, channels)
    total, product = _gradient_sums(grad, feats, center, offsets)
    product = product * scale
    factor = scale if weight is None else scale * weight
    weighted = [part if weight is None else part * weight for part in (total, product)]
    shift, slope = (_by_channel(_group_sums(part, num_groups) / size, channels) * -scale for part in weighted)
    coefficients = (factor.to(mean.dtype), (slope * scale).to(mean.dtype), shift.to(mean.dtype))
    d_feats = _affine(feats, grad, offsets, center, coefficients)
    return d_feats, product.sum(0).to(mean.dtype), total.sum(0).to(mean.dtype)


def _normalize_whole(
    feats: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    exact, channels = torch.promote_types(feats.dtype, torch.float32), feats.shape[1]
    items = Items.of(offsets, feats, num_groups)
    # 1. Center, up to the rounding error of the mean, which matters if the mean is large.
    x = feats.to(exact).contiguous()
    rough = items.group_means(x).to(exact)  # [B, G]
    centered = items.center(x, rough)  # [N, C]
    off = items.group_means(centered)
    # 2. Statistics of each item and group.
    out = centered * centered
    variance = torch.addcmul(items.group_means(out), off, off, value=-1)
    rstd = variance.add_(eps).rsqrt_().to(exact)
    if items.empty is not None:
        rstd.masked_fill_(items.empty, 0)
    # 3. Scale and shift each row: (centered - off) * scale + bias.
    scale = _by_channel(rstd, channels)  # [B, C]
    scale = scale if weight is None else (scale * weight).to(exact)
    start = scale.new_zeros(1) if bias is None else bias.to(exact)
    shift = torch.addcmul(start, _by_channel(off.to(exact), channels), scale, value=-1)
    items.scale_and_shift(centered, scale, shift, out)
    return out.to(feats.dtype), off.add_(rough).to(exact), rstd


def _differentiate_whole(
    grad: Tensor, feats: Tensor, offsets: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    exact, channels, num_groups = mean.dtype, feats.shape[1], mean.shape[1]
    items = Items.of(offsets, feats, num_groups)
    # 1. Sums of the gradients g, and of the products of g and the normalized features.
    g = grad.to(exact).contiguous()
    centered = items.center(feats.to(exact).contiguous(), mean)  # [N, C]
    d_feats = centered * g
    scale = _by_channel(rstd, channels)
    sums = torch.stack([items.sums(g), items.sums(d_feats) * scale])  # [2, B, C]
    d_bias, d_weight = (part.sum(0).to(exact) for part in sums)
    # 2. The gradient of the features is linear in g and the centered features, with coefficients [B, C].
    factor = scale
    if weight is not None:
        sums, factor = sums * weight, (scale * weight).to(exact)
    means = _group_sums(sums, num_groups) / items.sizes  # [2, B, G]
    shift, slope = (_by_channel(means, channels) * -scale).to(exact)
    # 3. Combine them row by row.
    items.scale_and_shift(centered, slope * scale, shift, d_feats)
    return items.add_scaled(g, factor, d_feats).to(feats.dtype), d_weight, d_bias


def _statistics(feats: Tensor, offsets: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation float64 [B, G], from means and centered squares of the chunks of each item."""
    counts, means, squares, items = [], [], [], [offsets[:0]]
    buffer = _buffer(feats)
    for block in _blocks(offsets, feats.shape[0]):
        x = feats[block.first : block.last].to(buffer.dtype).contiguous()
        length = block.lengths[:, None]
        rough = block.sums(x) / length
        centered = torch.sub(x, block.spread_chunks(rough), out=buffer[: x.shape[0]])
        off = block.sums(centered).double() / length  # rounding error of the mean, which matters if the mean is large
        means.append(rough.double() + off)
        squares.append(block.sums(centered.mul_(centered)).double() - off * off * length)
        counts.append(length)
        items.append(block.items)
    size = offsets.diff()[:, None] * (feats.shape[1] // num_groups)
    if not counts:
        return (torch.zeros((size.shape[0], num_groups), dtype=torch.float64, device=feats.device),) * 2
    item, count = torch.cat(items), torch.cat(counts)
    ranges = _ranges(item, offsets)
    chunk_means = torch.cat(means)
    mean = _group_sums(_bags(chunk_means * count, ranges), num_groups) / size.clamp(min=1)
    apart = chunk_means - _by_channel(mean, feats.shape[1])[item]
    square = _group_sums(_bags(torch.cat(squares) + apart * apart * count, ranges), num_groups)
    return mean, torch.where(size > 0, (square / size.clamp(min=1) + eps).rsqrt(), 0)


def _gradient_sums(grad: Tensor, feats: Tensor, center: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums float64 [B, C] over the rows of each item: of the gradients g, and of `g * (x - center)`."""
    totals, products, items = [], [], [offsets[:0]]
    buffer = _buffer(feats)
    for block in _blocks(offsets, feats.shape[0]):
        x, g = feats[block.first : block.last], grad[block.first : block.last].to(buffer.dtype).contiguous()
        totals.append(block.sums(g))
        products.append(block.sums(torch.sub(x, block.spread(center), out=buffer[: x.shape[0]]).mul_(g)))
        items.append(block.items)
    nothing, ranges = center[:0], _ranges(torch.cat(items), offsets)
    return _bags(torch.cat([nothing, *totals]).double(), ranges), _bags(
        torch.cat([nothing, *products]).double(), ranges
    )


def _affine(
    feats: Tensor,
    grad: Tensor | None,
    offsets: Tensor,
    center: Tensor,
    coefficients: tuple[Tensor | None, Tensor, Tensor | None],
) -> Tensor:
    """Rows [N, C]: `grad * factor + (feats - center) * slope + shift`, where all coefficients are [B, C] or [1, C]."""
    factor, slope, shift = coefficients
    out = torch.empty(feats.shape, dtype=feats.dtype, device=feats.device)
    buffer = _buffer(feats)
    for block in _blocks(offsets, feats.shape[0]):
        rows = slice(block.first, block.last)
        result = out[rows] if out.dtype == buffer.dtype else buffer[: block.last - block.first]
        torch.sub(feats[rows], block.spread(center), out=result)
        if shift is None:
            result.mul_(block.spread(slope))
        else:
            torch.addcmul(block.spread(shift), result, block.spread(slope), out=result)
        if grad is not None and factor is not None:
            result.addcmul_(grad[rows].to(result.dtype), block.spread(factor))
        if out.dtype != buffer.dtype:
            out[rows] = result
    return out


def _blocks(offsets: Tensor, rows: int) -> Iterator[Block]:
    """Cut the rows into blocks, and blocks into chunks: at multiples of CHUNK and at the bounds of items."""
    starts = torch.arange(0, rows, BLOCK, device=offsets.device)
    bounds = torch.cat([torch.arange(0, rows, CHUNK, device=offsets.device), offsets]).unique()
    items = torch.searchsorted(offsets, bounds[:-1], right=True) - 1
    edges = [*torch.searchsorted(bounds, starts).tolist(), bounds.shape[0] - 1]
    for number, first in enumerate(range(0, rows, BLOCK)):
        mine = items[edges[number] : edges[number + 1]]
        last = min(first + BLOCK, rows)
        if mine[0] == mine[-1]:
            yield Block(first, last, mine[:1], starts.new_tensor([last - first]), None)
        else:
            lengths = bounds[edges[number] : edges[number + 1] + 1].diff()
            yield Block(first, last, mine, lengths, torch.repeat_interleave(lengths, output_size=last - first))


def _bags(values: Tensor, bounds: Tensor, rows: Tensor | None = None) -> Tensor:
    """Sums over the rows from bounds[t] to bounds[t + 1]: [T, C]. `rows` are the numbers of all rows."""
    if rows is None:
        rows = torch.arange(values.shape[0], device=values.device)
    sums, *_ = torch.embedding_bag(values, rows, bounds, mode=0, include_last_offset=True)
    return sums


def _ranges(items: Tensor, offsets: Tensor) -> Tensor:
    """First chunk of each item, and the end, from the ascending items of the chunks: [B + 1]."""
    return torch.searchsorted(items, torch.arange(offsets.shape[0], device=offsets.device))


def _buffer(feats: Tensor) -> Tensor:
    """Buffer for the rows of a block."""
    exact = torch.promote_types(feats.dtype, torch.float32)
    return torch.empty((min(BLOCK, feats.shape[0]), feats.shape[1]), dtype=exact, device=feats.device)


def _group_sums(sums: Tensor, num_groups: int) -> Tensor:
    """Sums float64 [..., B, G] over the channels of each group of [..., B, C]."""
    return sums.view(*sums.shape[:-1], num_groups, sums.shape[-1] // num_groups).sum(-1, dtype=torch.float64)


def _by_channel(values: Tensor, channels: int) -> Tensor:
    """Values [..., B, C]: those [..., B, G] of the group of each channel."""
    return values.repeat_interleave(channels // values.shape[-1], -1)
