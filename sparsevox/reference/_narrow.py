"""Matrix products with few columns, which BLAS multiplies up to eight times more slowly than those with NARROW columns.

C input and D output channels, K taps.
"""

import torch
from torch import Tensor

NARROW = 16  # columns


def widen(weight: Tensor) -> Tensor:
    """Append columns of zeros to a weight [K, C, D] with fewer than NARROW columns."""
    return torch.nn.functional.pad(weight, (0, max(0, NARROW - weight.shape[2])))


def is_turned(inputs: int, outputs: int) -> bool:
    """Whether rows of C `inputs` and D `outputs` are better multiplied to a matrix [D, C] than to [C, D]."""
    return outputs < NARROW and outputs < inputs
