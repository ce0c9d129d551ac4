"""Submanifold convolution: with a cached kernel map, with the search for it, and forward and backward."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

import sparsevox as sv
from bench import baseline, peers, plain_conv
from bench.contenders import grid
from bench.harness import Case, Contender, Target, close

CHANNELS = (32, 64)
# Tolerances of sums of a few hundred to a few thousand products, relative to the largest.
TOLERANCES = {"float32": 1e-5, "tf32": 4e-3, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Problem:
    """Operands of a 3x3x3 convolution on a grid."""

    grid: sv.Grid
    feats: Tensor  # [N, C]
    weight: Tensor  # [C, C, 3, 3, 3]
    grads: Tensor  # [N, C]
    tf32: bool

    @classmethod
    def on(cls, coords: Tensor, channels: int, dtype: str) -> "Problem":
        """Draw features, weight and gradients of about 1 on a scene, in a dtype of torch or "tf32"."""
        generator = torch.Generator().manual_seed(0)
        g = grid(coords)
        kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
        shape = (g.num_voxels, channels)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator).to(coords.device, kind)

        weight = random(channels, channels, 3, 3, 3) / math.sqrt(10 * channels)
        return cls(g, random(*shape), weight, random(*shape), dtype == "tf32")

    @property
    def matrices(self) -> Tensor:
        """The weight in the layout of plain torch: [27, C, C]."""
        return rearrange(self.weight, "d c i j k -> (i j k) c d").contiguous()

    def precisely(self, run: Callable[..., Any], *operands: Any) -> Callable[[], Any]:
        """Wrap a call so that float32 products have the precision of the problem."""

        def call() -> Any:
            with products("tf32" if self.tf32 else "ieee"):
                return run(*operands)

        return call if self.grid.device.type == "cuda" else functools.partial(run, *operands)

    def flat(self, result: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Concatenate output and gradients, scaled to about the same size, with the weight in our layout."""
        output, d_feats, d_weight = result
        if d_weight.ndim == 3:
            d_weight = rearrange(d_weight, "(i j k) c d -> d c i j k", i=3, j=3)
        parts = (output, d_feats, d_weight / math.sqrt(len(self.feats)))
        return torch.cat([part.float().flatten() for part in parts])


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Set the precision of float32 products on a GPU."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def forward(coords: Tensor, *, channels: int, dtype: str) -> Sequence[Contender]:
    """Compare the forward pass with cached kernel maps."""
    p = Problem.on(coords, channels, dtype)
    the_map = p.grid.kernel_map(3)
    pairs = plain_conv.pairs(the_map.table)
    contenders = [
        Contender("sparsevox", p.precisely(no_grad(sv.ops.conv3d), p.feats, p.weight, None, the_map), torch.as_tensor),
        Contender(
            "plain torch, tap by tap",
            p.precisely(no_grad(plain_conv.conv), p.feats, p.matrices, pairs, len(p.feats)),
            torch.as_tensor,
            baseline=True,
            target=Target("speed", ">=", 1.5),
        ),
        Contender(
            "plain torch, center tap without gather",
            p.precisely(no_grad(plain_conv.conv_within), p.feats, p.matrices, pairs),
            torch.as_tensor,
            baseline=True,
        ),
    ]
    if theirs := peers.convolution(p.grid, p.weight, p.tf32):
        run = p.precisely(no_grad(theirs.cached), p.feats)
        contenders.append(peers.contender(p.grid.device, run, torch.as_tensor, Target("speed", ">=", 1.8)))
    return contenders


def with_map(coords: Tensor, *, channels: int, dtype: str) -> Sequence[Contender]:
    """Compare the forward pass including the search for the kernel map."""
    p = Problem.on(coords, channels, dtype)
    g, keys = p.grid, baseline.keys_of(p.grid)
    rows = g.index(baseline.decode(keys))  # the voxel list has a different order
    listed = p.feats[rows]

    @no_grad
    def ours() -> Tensor:
        g.clear_cache()
        return sv.ops.conv3d(p.feats, p.weight, None, g.kernel_map(3))

    @no_grad
    def searched() -> Tensor:
        pairs = plain_conv.pairs(baseline.neighbor_table_by_symmetry(keys))
        return plain_conv.conv_within(listed, p.matrices, pairs)

    contenders = [
        Contender("sparsevox", p.precisely(ours), torch.as_tensor),
        Contender(
            "voxel list, tap by tap", p.precisely(searched), lambda y: torch.empty_like(y).index_copy_(0, rows, y), True
        ),
    ]
    if theirs := peers.convolution(g, p.weight, p.tf32):
        contenders.append(peers.contender(g.device, p.precisely(no_grad(theirs.fresh), p.feats), torch.as_tensor))
    return contenders


def step(
    coords: Tensor, *, channels: int, dtype: str, speed: Target | None = None, memory: Target | None = None
) -> Sequence[Contender]:
    """Compare forward and backward, with the gradients of features and weight, with cached kernel maps."""
    p = Problem.on(coords, channels, dtype)
    the_map = p.grid.kernel_map(3)
    pairs = plain_conv.pairs(the_map.table)
    feats, weight, matrices = (leaf.clone().requires_grad_() for leaf in (p.feats, p.weight, p.matrices))

    def train(output: Tensor, operand: Tensor) -> tuple[Tensor, ...]:
        return output.detach(), *torch.autograd.grad(output, (feats, operand), p.grads)

    def ours() -> tuple[Tensor, ...]:
        return train(sv.ops.conv3d(feats, weight, None, the_map), weight)

    def tap_by_tap() -> tuple[Tensor, ...]:
        return train(plain_conv.conv_within(feats, matrices, pairs), matrices)

    contenders = [
        Contender("sparsevox", p.precisely(ours), p.flat),
        Contender(
            "plain torch, center tap without gather", p.precisely(tap_by_tap), p.flat, baseline=True, target=memory
        ),
    ]
    if theirs := peers.convolution(p.grid, p.weight, p.tf32):
        run = p.precisely(theirs.step, feats, p.grads)
        contenders.append(peers.contender(p.grid.device, run, p.flat, speed))
    return contenders


def no_grad(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a function so that it builds no autograd graph."""
    return torch.no_grad()(run)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a shell of 100k voxels, a LiDAR sweep, and memory on 1M voxels; on a GPU all dtypes and larger scenes."""

    def case(name: str, prepare: Callable[..., Sequence[Contender]], scene: str, size: int, **options: Any) -> Case:
        channels, dtype, rounds = options["channels"], options["dtype"], options.pop("rounds", None)
        prepared = functools.partial(prepare, **options)
        agree = close(TOLERANCES[dtype])
        return Case(
            name.format(f"{channels}->{channels}"), scene, size, prepared, agree=agree, dtype=dtype, rounds=rounds
        )

    if device.type == "cuda":
        scenes = [("shell", 48)] if quick else [("shell", 565), ("shell", 1024), ("lidar", 8192)]
        for dtype in ("float16", "bfloat16", "tf32", "float32"):
            for scene, size in scenes:
                for channels in CHANNELS:
                    at: dict[str, Any] = {"channels": channels, "dtype": dtype}
                    yield case("conv3d {}", forward, scene, size, **at)
                    yield case("conv3d {}, forward and backward", step, scene, size, **at)
        return
    target = Target("speed", ">=", 1.5)
    for scene, size in (("shell", 32 if quick else 180), ("lidar", 64 if quick else 2048)):
        for channels in CHANNELS:
            at = {"channels": channels, "dtype": "float32"}
            yield case("conv3d {}", forward, scene, size, **at)
            yield case("kernel map and conv3d {}", with_map, scene, size, **at)
            yield case("conv3d {}, forward and backward", step, scene, size, **at, speed=target)
    big = {"channels": 64, "dtype": "float32", "rounds": 1, "memory": Target("memory", "<=", 0.5)}
    yield case("conv3d {}, forward and backward", step, "shell", 48 if quick else 565, **big)
