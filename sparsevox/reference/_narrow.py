"""Matrix products with few columns, which take BLAS up to four times as long as the same products with NARROW columns.

C input and D output channels, K taps.
"""

import torch
from torch import Tensor

NARROW = 16  # columns


def widen(weight: Tensor) -> Tensor:
    """Append columns of zeros to a weight [K, C, D] with fewer than NARROW columns."""
    return torch.nn.functional.pad(weight, (0, max(0, NARROW - weight.shape[2])))


def prefers_transposed(inputs: int, outputs: int) -> bool:
    """Whether the product [C, D] of C `inputs` and D `outputs` takes longer than its transpose [D, C]."""
    return outputs < NARROW and outputs < inputs
