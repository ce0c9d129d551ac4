"""Modules that act on each voxel separately, and `Sequential`.

N voxels, C channels.
"""

from typing import Any

import torch
from torch import Tensor

from sparsevox.nn._base import Module, check_channels
from sparsevox.tensor import SparseTensor


class Sequential(torch.nn.Sequential):
    """Apply modules in sequence, including those of `torch.nn`, which are applied to the features [N, C].

    All other modules receive the SparseTensor. After a `GlobalPool`, which returns a tensor [B, C], the remaining
    modules receive tensors.

    Example:
        >>> sv.nn.Sequential(sv.nn.Conv3d(3, 32, 3), torch.nn.BatchNorm1d(32), torch.nn.ReLU())
    """

    def forward(self, x: Any) -> Any:
        """Apply the modules in order."""
        for module in self:
            x = x.map(module) if isinstance(x, SparseTensor) and _is_rowwise(module) else module(x)
        return x


def _is_rowwise(module: torch.nn.Module) -> bool:
    """Check that a module is defined by torch and contains none of this library."""
    if type(module).__module__.split(".")[0] != "torch":
        return False
    classes = [c.__module__ for part in module.modules() for c in type(part).__mro__]
    return not any(name.startswith("sparsevox.") for name in classes)


class Linear(Module):
    """Linear layer on the features of each voxel, as `torch.nn.Linear`.

    The computation runs in the dtype of the features.

    Shape:
        Input: features [N, in_features]. Output: features [N, out_features] on the same voxels.

    Args:
        in_features: Number of input channels.
        out_features: Number of output channels.
        bias: Whether to learn a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inner = torch.nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.in_features, self.out_features = in_features, out_features
        self.weight, self.bias = inner.weight, inner.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Map features [N, in_features] to [N, out_features]."""
        x = self._check_input(x)
        check_channels(self, x, self.in_features)
        return x.map(self._apply_rows)

    def _apply_rows(self, feats: Tensor) -> Tensor:
        return linear(feats, self.weight, self.bias)


def linear(feats: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear map in the dtype of the features, to which weight and bias are cast."""
    return torch.nn.functional.linear(feats, weight.to(feats.dtype), None if bias is None else bias.to(feats.dtype))
