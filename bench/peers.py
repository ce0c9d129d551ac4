"""The contender spconv, a sparse-convolution library that also has a CPU build, if it is installed.

It runs in the same process and the same rounds. On a CPU, its version 2.3.8 has two bugs:

- Its forward pass is correct with one thread only: the threads of `scatter_add` share a pointer (`gather.py` of its C++
  sources), so that with more threads rows are lost, different ones in every run. Hence `max_threads=1`.
- Its backward pass asks for the CUDA stream before it checks for a GPU, and raises if torch was built without CUDA. It
  uses the stream on a GPU only, so a stub replaces the call.

Its voxels are in our row order, moved so that coordinates are not negative, which it does not support.
N fine voxels, M coarse voxels, K taps, C input channels, D output channels.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sparsevox as sv
from bench.harness import Contender, Target

MARGIN = 8  # voxels around the scene; even, so that strided voxels move by half of it


class Voxels(NamedTuple):
    """The input of spconv's search for pairs."""

    coords: Tensor  # int32 [N, 4], not negative
    shape: list[int]  # of the volume
    batch_size: int
    lower: Tensor  # subtracted from our coordinates: int32 [3]


def spconv(device: torch.device) -> Any:
    """Import `spconv.pytorch` for a device, or return None if it is not installed or does not support the device."""
    if not importlib.util.find_spec("spconv"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of its own imports
        library = importlib.import_module("spconv.pytorch")
    if device.type == "cuda" and library.ops.CPU_ONLY_BUILD:
        return None
    if not torch.cuda.is_available():
        library.ops.get_current_stream = lambda: 0
    return library


def voxels(grid: sv.Grid) -> Voxels:
    """Convert a grid to spconv's input, in a volume with a margin for all that convolutions reach."""
    coords = grid.coords
    lower = (coords[:, 1:].amin(0) & ~1) - MARGIN
    coords[:, 1:] -= lower
    return Voxels(coords.contiguous(), (coords[:, 1:].amax(0) + MARGIN).tolist(), grid.batch_size, lower)


def threads(device: torch.device) -> int | None:
    """Return the number of CPU threads up to which spconv is correct; None for any."""
    return 1 if device.type == "cpu" else None


def kernel_map(grid: sv.Grid, kernel_size: int, stride: int) -> Contender | None:
    """Create the contender that only searches for pairs, compared as a table [K, M] in our row order."""
    library = spconv(grid.device)
    if library is None:
        return None
    given = voxels(grid)
    padding, within = (kernel_size - 1) // 2, stride == 1
    sizes = [[size] * 3 for size in (kernel_size, stride, padding, 1, 0)]
    native = library.ConvAlgo.Native
    coarse = grid if within else grid.strided(kernel_size, stride)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = library.ops.get_indice_pairs(
            given.coords, given.batch_size, given.shape, native, *sizes, within, False
        )
        return found

    def table(found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        coords, pairs, counts = found[0].clone(), found[1].long(), found[2].tolist()
        coords[:, 1:] += given.lower // stride
        rows, taps = coarse.index(coords), pairs.shape[1]
        result = torch.full((taps, coarse.num_voxels), -1, dtype=torch.int32, device=grid.device)
        if within:  # spconv counts only the first half of the taps, which the second mirrors, without the center
            counts = [*counts[: taps // 2], 0, *reversed(counts[: taps // 2])]
            result[taps // 2] = torch.arange(len(rows), device=grid.device)
        for tap, count in enumerate(counts):
            result[tap, rows[pairs[1, tap, :count]]] = pairs[0, tap, :count].int()
        return result

    def nbytes(found: tuple[Tensor, Tensor, Tensor]) -> int:
        return found[1].nbytes + found[2].nbytes

    return Contender("spconv", run, table, baseline=True, nbytes=nbytes, max_threads=threads(grid.device))


class Convolution:
    """spconv's submanifold convolution on a grid, with a cached kernel map or without."""

    def __init__(self, library: Any, grid: sv.Grid, weight: Tensor, tf32: bool) -> None:
        self._library = library
        self._voxels = voxels(grid)
        cpu = grid.device.type == "cpu"
        # On a GPU it chooses the algorithm itself, and would accumulate float16 in float16 by default.
        options: dict[str, Any] = {"algo": library.ConvAlgo.Native} if cpu else {"fp32_accum": True}
        channels = weight.shape[1], weight.shape[0]
        size = weight.shape[2]
        self._remembers = library.SubMConv3d(*channels, size, bias=False, indice_key="map", **options).to(weight)
        self._forgets = library.SubMConv3d(*channels, size, bias=False, **options).to(weight)
        for module in (self._remembers, self._forgets):
            with torch.no_grad():
                module.weight.copy_(weight.permute(0, 2, 3, 4, 1))  # [D, k0, k1, k2, C]
        self._tf32 = tf32
        # A tensor that has been through the module once holds the kernel map under its key.
        self._known = self._remembers(self._input(weight.new_zeros(len(self._voxels.coords), channels[0])))

    def _input(self, feats: Tensor) -> Any:
        return self._library.SparseConvTensor(feats, self._voxels.coords, self._voxels.shape, self._voxels.batch_size)

    def cached(self, feats: Tensor) -> Tensor:
        """Convolve features to [N, D] with the cached kernel map."""
        self._set_tf32()
        result: Tensor = self._remembers(self._known.replace_feature(feats)).features
        return result

    def fresh(self, feats: Tensor) -> Tensor:
        """Convolve features to [N, D], including the search for the kernel map."""
        self._set_tf32()
        result: Tensor = self._forgets(self._input(feats)).features
        return result

    def step(self, feats: Tensor, grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the output and the gradients of the input and of the weight, in our layout."""
        weight = self._remembers.weight
        output = self.cached(feats)
        d_feats, d_weight = torch.autograd.grad(output, (feats, weight), grads)
        return output.detach(), d_feats, d_weight.permute(0, 4, 1, 2, 3)

    def _set_tf32(self) -> None:
        self._library.ops.constants.SPCONV_ALLOW_TF32 = self._tf32


def convolution(grid: sv.Grid, weight: Tensor, tf32: bool = False) -> Convolution | None:
    """Create spconv's convolution with a weight [D, C, k, k, k]; None if not installed, or for bfloat16."""
    library = None if weight.dtype == torch.bfloat16 else spconv(grid.device)
    return None if library is None else Convolution(library, grid, weight, tf32)


def contender(
    device: torch.device, run: Callable[[], Any], view: Callable[[Any], Tensor], target: Target | None = None
) -> Contender:
    """Create a baseline that runs spconv."""
    return Contender("spconv", run, view, baseline=True, target=target, max_threads=threads(device))
