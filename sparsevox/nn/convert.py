"""Weights of other libraries, in the layout of `torch.nn.Conv3d`.

K taps, C input and D output channels.
"""

from typing import Literal

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
    """The weight of a convolution of another library, as `Conv3d` or `ConvTranspose3d` takes it.

    | source | their layout |
    |---|---|
    | spconv 2 | [D, k0, k1, k2, C]; axes in the order of its `indices` |
    | flexgemm | [D, k0, k1, k2, C] |
    | minkowski | [K, C, D], the first axis fastest in K; even kernels begin at the voxel itself: use `padding=0` |
    | torchsparse | [K, C, D], the first axis fastest in K for odd kernels, the last one for even ones |
    | fvdb | [D, C, k0, k1, k2], as ours |
    | fvdb2024 | [D, C, k2, k1, k0]: fVDB before its move to fvdb-core, and the released XCube networks |

    Kernels of one tap may come as matrices: [C, D] from minkowski and torchsparse, [D, C] from the others. The 1x1x1
    kernel of a layer of stride 1 spconv stores as [D, 1, 1, 1, C] like any other, but reads as [C, D].

    Args:
        weight: Their tensor.
        source: Where it is from.
        kernel_size: Needed for [K, C, D] if the kernel is no cube.
        transposed: Whether it is the weight of a transposed convolution.
        strided: Whether their layer has a stride; only spconv's 1x1x1 kernels depend on it.

    Returns:
        [D, C, k0, k1, k2], or [C, D, k0, k1, k2] if transposed; contiguous.

    Raises:
        TypeError: If `weight` is no floating-point tensor.
        ValueError: If the source is unknown or the shape is not one of its shapes.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(map(repr, SOURCES))}, got {source!r}")
    w = checks.floats("weight", checks.tensor("weight", weight))
    flat = source in ("minkowski", "torchsparse")
    if w.ndim == 2:
        converted = (w.t() if flat else w)[:, :, None, None, None]
    elif flat:
        converted = _from_flat(w, source, kernel_size)
    elif w.ndim != 5:
        raise ValueError(f"weight of {source} must have 5 axes (or 2, for one tap), got {list(w.shape)}")
    elif source == "spconv" and w.shape[1:4].numel() == 1 and not strided:
        converted = w.reshape(w.shape[4], w.shape[0]).t()[:, :, None, None, None]
    elif source in ("spconv", "flexgemm"):
        converted = w.permute(0, 4, 1, 2, 3)
    else:
        converted = w.permute(0, 1, 4, 3, 2) if source == "fvdb2024" else w
    return (converted.transpose(0, 1) if transposed else converted).contiguous()


def _from_flat(weight: Tensor, source: str, kernel_size: int | tuple[int, int, int] | None) -> Tensor:
    if weight.ndim != 3:
        raise ValueError(
            f"weight of {source} must have shape [K, C, D], or [C, D] for one tap, got {list(weight.shape)}"
        )
    taps = weight.shape[0]
    size = checks.int_triple("kernel_size", round(taps ** (1 / 3)) if kernel_size is None else kernel_size)
    if size[0] * size[1] * size[2] != taps:
        raise ValueError(f"kernel_size must have {taps} taps, as weight {list(weight.shape)}, got {kernel_size!r}")
    odd = all(k % 2 for k in size)
    if source == "torchsparse" and not odd:
        return weight.unflatten(0, size).permute(4, 3, 0, 1, 2)
    return weight.unflatten(0, size[::-1]).permute(4, 3, 2, 1, 0)
