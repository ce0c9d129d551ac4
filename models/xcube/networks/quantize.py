"""Weights in fewer bits, for smaller files: 16-bit floats, or 8-bit integers with a scale per output channel.

Networks compute in float32; their weights are converted when they are loaded.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

Bits = Literal[32, 16, 8]

SCALE = "#scale"  # appended to the name of an 8-bit weight; parameters of a module cannot have such a name
INT8_MAX = 127
LEAST = 1024  # elements of a tensor that is stored in 8 bits


def compressed(state: Mapping[str, Tensor], bits: Bits) -> dict[str, Tensor]:
    """Store floating-point parameters in fewer bits.

    With 8 bits, a weight `w` of output channel c becomes the integer nearest to `w / scale[c]`, where the scale is
    chosen so that the largest absolute weight of the channel becomes 127. Vectors and small tensors keep 32 bits.

    Args:
        state: Parameters by name; the first axis is that of the output channels.
        bits: Number of bits: 32 changes nothing.

    Raises:
        ValueError: If `bits` is another number, or a weight is too large for 16 bits or not finite for 8.
    """
    if bits not in get_args(Bits):
        raise ValueError(f"bits must be one of {', '.join(map(str, get_args(Bits)))}, got {bits}")
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        if bits == 16 and value.is_floating_point():
            made[name] = value.half()
            if bool(made[name].isinf().any()) and not bool(value.isinf().any()):
                raise ValueError(f"weights must be at most 65504 for 16 bits, got {float(value.abs().max())} in {name}")
        elif bits == 8 and value.is_floating_point() and value.ndim > 1 and value.numel() >= LEAST:
            rows = value.float().flatten(1)  # [C_out, ...]
            if not bool(rows.isfinite().all()):
                raise ValueError(f"weights must be finite for 8 bits, got others in {name}")
            scale = rows.abs().amax(1) / INT8_MAX
            made[name] = (rows / torch.where(scale > 0, scale, 1)[:, None]).round().to(torch.int8).view(value.shape)
            made[name + SCALE] = scale
        else:
            made[name] = value
    return made


def restored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert parameters of 16 and 8 bits that `compressed` made to float32.

    Raises:
        ValueError: If a scale does not fit its weight.
    """
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(SCALE):
            continue
        scale = state.get(name + SCALE)
        if scale is not None:
            if scale.shape != value.shape[:1]:
                raise ValueError(f"{name} must have {list(value.shape[:1])} scales, got {list(scale.shape)}")
            value = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        made[name] = value.float() if value.dtype == torch.float16 else value
    return made
