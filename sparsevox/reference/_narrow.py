"""Products with matrices of few columns, which can take BLAS several times as long as with NARROW columns.

C input and D output channels, K taps.
"""

import torch
from torch import Tensor

NARROW = 16  # columns


def widen(weight: Tensor) -> Tensor:
    """Append columns of zeros to a weight [K, C, D] that is faster with them: float32 with 2 to NARROW - 1 columns."""
    if weight.dtype != torch.float32 or not 1 < weight.shape[2] < NARROW:
        return weight
    return torch.nn.functional.pad(weight, (0, NARROW - weight.shape[2]))


def prefers_transposed(inputs: int, outputs: int) -> bool:
    """Whether the product [C, D] of C `inputs` and D `outputs` takes longer than its transpose [D, C]."""
    return outputs < NARROW and outputs < inputs
