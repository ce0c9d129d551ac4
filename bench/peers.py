"""spconv, the sparse-convolution library that also has a CPU build, where it is installed.

It takes part in the same process and the same rounds. Two things have to be known of its version 2.3.8 on a CPU:

- Its forward pass is right with one thread only: the threads of `scatter_add` share a pointer (`gather.py` of its C++
  sources), so with more of them rows are lost, other ones in every run. Hence `max_threads=1`.
- Its backward pass asks for the CUDA stream before it looks whether there is a GPU, and raises where torch was built
  without CUDA. What it would do with the stream, it does on a GPU only: a stub is put in its place.

Its voxels come in the order of our rows, moved so that no coordinate is negative, which it cannot have.
N fine voxels, M coarse voxels, K taps, C input and D output channels.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sparsevox as sv
from bench.harness import Contender, Wanted

MARGIN = 8  # voxels around the scene; even, so that strided voxels move by half of it


class Voxels(NamedTuple):
    """What spconv makes its maps from."""

    coords: Tensor  # int32 [N, 4], none negative
    shape: list[int]  # of the volume
    batch_size: int
    lower: Tensor  # int32 [3]: what was taken off our coordinates


def spconv(device: torch.device) -> Any:
    """The module `spconv.pytorch`, ready for a device; None where it is not installed or cannot work there."""
    if not importlib.util.find_spec("spconv"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its own imports do is none of ours
        library = importlib.import_module("spconv.pytorch")
    if device.type == "cuda" and library.ops.CPU_ONLY_BUILD:
        return None
    if not torch.cuda.is_available():
        library.ops.get_current_stream = lambda: 0
    return library


def voxels(grid: sv.Grid) -> Voxels:
    """The voxels of a grid, row by row, and a volume that has them with all that convolutions reach."""
    coords = grid.coords
    lower = (coords[:, 1:].amin(0) & ~1) - MARGIN
    coords[:, 1:] -= lower
    return Voxels(coords.contiguous(), (coords[:, 1:].amax(0) + MARGIN).tolist(), grid.batch_size, lower)


def threads(device: torch.device) -> int | None:
    """How many CPU threads it is right with."""
    return 1 if device.type == "cpu" else None


def kernel_map(grid: sv.Grid, kernel_size: int, stride: int) -> Contender | None:
    """spconv's search for pairs, and nothing else, compared as a table [K, M] in our rows."""
    library = spconv(grid.device)
    if library is None:
        return None
    there = voxels(grid)
    padding, within = (kernel_size - 1) // 2, stride == 1
    sizes = [[size] * 3 for size in (kernel_size, stride, padding, 1, 0)]
    native = library.ConvAlgo.Native
    coarse = grid if within else grid.strided(kernel_size, stride)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = library.ops.get_indice_pairs(
            there.coords, there.batch_size, there.shape, native, *sizes, within, False
        )
        return found

    def table(found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        coords, pairs, counts = found[0].clone(), found[1].long(), found[2].tolist()
        coords[:, 1:] += there.lower // stride
        rows, taps = coarse.index(coords), pairs.shape[1]
        result = torch.full((taps, coarse.num_voxels), -1, dtype=torch.int32, device=grid.device)
        if within:  # it counts the first half of the taps, and the other one mirrors it; the middle is left out
            counts = [*counts[: taps // 2], 0, *reversed(counts[: taps // 2])]
            result[taps // 2] = torch.arange(len(rows), device=grid.device)
        for tap, count in enumerate(counts):
            result[tap, rows[pairs[1, tap, :count]]] = pairs[0, tap, :count].int()
        return result

    def nbytes(found: tuple[Tensor, Tensor, Tensor]) -> int:
        return found[1].nbytes + found[2].nbytes

    return Contender("spconv", run, table, baseline=True, nbytes=nbytes, max_threads=threads(grid.device))


class Convolution:
    """spconv's sub-manifold convolution of a grid's features, with its map at hand or without."""

    def __init__(self, library: Any, grid: sv.Grid, weight: Tensor, tf32: bool) -> None:
        self._library = library
        self._there = voxels(grid)
        cpu = grid.device.type == "cpu"
        # On a GPU it chooses the algorithm itself; its sums of float16 would be float16 if it were not asked.
        options: dict[str, Any] = {"algo": library.ConvAlgo.Native} if cpu else {"fp32_accum": True}
        channels = weight.shape[1], weight.shape[0]
        size = weight.shape[2]
        self._remembers = library.SubMConv3d(*channels, size, bias=False, indice_key="map", **options).to(weight)
        self._forgets = library.SubMConv3d(*channels, size, bias=False, **options).to(weight)
        for module in (self._remembers, self._forgets):
            with torch.no_grad():
                module.weight.copy_(weight.permute(0, 2, 3, 4, 1))  # [D, k0, k1, k2, C]
        self._tf32 = tf32
        # A tensor that has been through the module once knows the map by its key.
        self._known = self._remembers(self._input(weight.new_zeros(len(self._there.coords), channels[0])))

    def _input(self, feats: Tensor) -> Any:
        return self._library.SparseConvTensor(feats, self._there.coords, self._there.shape, self._there.batch_size)

    def cached(self, feats: Tensor) -> Tensor:
        """Features [N, D] with the map at hand."""
        self._say_tf32()
        result: Tensor = self._remembers(self._known.replace_feature(feats)).features
        return result

    def fresh(self, feats: Tensor) -> Tensor:
        """Features [N, D]; the map is searched for, too."""
        self._say_tf32()
        result: Tensor = self._forgets(self._input(feats)).features
        return result

    def step(self, feats: Tensor, grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, and the gradients of the input and the weight, which is laid out as ours."""
        weight = self._remembers.weight
        output = self.cached(feats)
        d_feats, d_weight = torch.autograd.grad(output, (feats, weight), grads)
        return output.detach(), d_feats, d_weight.permute(0, 4, 1, 2, 3)

    def _say_tf32(self) -> None:
        self._library.ops.constants.SPCONV_ALLOW_TF32 = self._tf32


def convolution(grid: sv.Grid, weight: Tensor, tf32: bool = False) -> Convolution | None:
    """spconv's convolution with a weight [D, C, k, k, k]; None without it, and in bfloat16, which it lacks."""
    library = None if weight.dtype == torch.bfloat16 else spconv(grid.device)
    return None if library is None else Convolution(library, grid, weight, tf32)


def contender(
    device: torch.device, run: Callable[[], Any], view: Callable[[Any], Tensor], beside: Wanted | None = None
) -> Contender:
    """spconv as a baseline."""
    return Contender("spconv", run, view, baseline=True, beside=beside, max_threads=threads(device))
