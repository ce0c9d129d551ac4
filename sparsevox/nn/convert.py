"""Conversion of convolution weights of other libraries to the layout of `torch.nn.Conv3d`.

K kernel offsets (taps), C input channels, D output channels.
"""

from typing import Literal

from einops import rearrange
from torch import Tensor

from sparsevox import checks

Source = Literal["spconv", "torchsparse", "minkowski", "fvdb", "fvdb2024", "flexgemm"]

SOURCES = ("spconv", "torchsparse", "minkowski", "fvdb", "fvdb2024", "flexgemm")


def convert_weight(
    weight: Tensor,
    source: Source,
    *,
    kernel_size: int | tuple[int, int, int] | None = None,
    transposed: bool = False,
    strided: bool = False,
) -> Tensor:
    """Convert the convolution weight of another library to the layout of `Conv3d` or `ConvTranspose3d`.

    | source | layout of the library |
    |---|---|
    | spconv (2.x) | [D, k0, k1, k2, C], axes in the order of its `indices` |
    | flexgemm | [D, k0, k1, k2, C] |
    | minkowski | [K, C, D], first axis fastest in K; even kernels start at the voxel itself: use `padding=0` |
    | torchsparse | [K, C, D], first axis fastest in K for odd kernels, last axis fastest for even ones |
    | fvdb | [D, C, k0, k1, k2], as in this library |
    | fvdb2024 | [D, C, k2, k1, k0]: fVDB before fvdb-core, and the official XCube checkpoints |

    Weights of 1x1x1 kernels may be matrices: [C, D] for minkowski and torchsparse, [D, C] for the others. spconv stores
    those of layers of stride 1 as [D, 1, 1, 1, C], like any other, but interprets the memory as [C, D]; this is
    accounted for.

    Args:
        weight: Weight in the layout of the library, floating-point.
        source: Library that the weight comes from.
        kernel_size: Kernel size, one int or one per axis. Required for [K, C, D] if the kernel is not a cube.
        transposed: Whether the layer is a transposed convolution.
        strided: Whether the layer has a stride greater than 1. Matters only for 1x1x1 kernels of spconv.

    Returns:
        Contiguous weight [D, C, k0, k1, k2], or [C, D, k0, k1, k2] if transposed.

    Raises:
        TypeError: If `weight` is not a floating-point tensor.
        ValueError: If `source` is unknown or the shape of `weight` does not match it.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(map(repr, SOURCES))}, got {source!r}")
    w = checks.floats("weight", checks.tensor("weight", weight))
    flat = source in ("minkowski", "torchsparse")
    if w.ndim == 2:
        converted = rearrange(w, "c d -> d c 1 1 1" if flat else "d c -> d c 1 1 1")
    elif flat:
        converted = _from_flat(w, source, kernel_size)
    elif w.ndim != 5:
        raise ValueError(f"weight of {source} must have 5 axes, or 2 for a 1x1x1 kernel, got {list(w.shape)}")
    elif source == "spconv" and w.shape[1:4].numel() == 1 and not strided:
        converted = rearrange(w.reshape(w.shape[4], w.shape[0]), "c d -> d c 1 1 1")
    elif source in ("spconv", "flexgemm"):
        converted = rearrange(w, "d k0 k1 k2 c -> d c k0 k1 k2")
    elif source == "fvdb2024":
        converted = rearrange(w, "d c k2 k1 k0 -> d c k0 k1 k2")
    else:
        converted = w
    return (converted.transpose(0, 1) if transposed else converted).contiguous()


def _from_flat(weight: Tensor, source: str, kernel_size: int | tuple[int, int, int] | None) -> Tensor:
    if weight.ndim != 3:
        raise ValueError(
            f"weight of {source} must have shape [K, C, D], or [C, D] for a 1x1x1 kernel, got {list(weight.shape)}"
        )
    taps = weight.shape[0]
    size = checks.int_triple("kernel_size", round(taps ** (1 / 3)) if kernel_size is None else kernel_size)
    if size[0] * size[1] * size[2] != taps:
        raise ValueError(f"kernel_size must have {taps} taps, as weight {list(weight.shape)} has, got {kernel_size!r}")
    k0, k1, k2 = size
    last_axis_fastest = source == "torchsparse" and not all(k % 2 for k in size)
    order = "(k0 k1 k2)" if last_axis_fastest else "(k2 k1 k0)"
    return rearrange(weight, f"{order} c d -> d c k0 k1 k2", k0=k0, k1=k1, k2=k2)
