"""Modules that treat every voxel by itself, and chains of modules.

N voxels, C channels.
"""

from typing import Any

import torch
from torch import Tensor

from sparsevox.nn._base import Module, check_channels
from sparsevox.tensor import SparseTensor


class Sequential(torch.nn.Sequential):
    """Modules one after the other. Those of `torch.nn` see the features [N, C] as rows.

    `Sequential(sv.nn.Conv3d(3, 32, 3), torch.nn.BatchNorm1d(32), torch.nn.ReLU())`. Any other module, ours or yours, is
    given the SparseTensor. After a `GlobalPool` there are plain rows, one a grid.
    """

    def forward(self, x: Any) -> Any:
        """What the last module returns."""
        for module in self:
            x = x.map(module) if isinstance(x, SparseTensor) and _is_rowwise(module) else module(x)
        return x


def _is_rowwise(module: torch.nn.Module) -> bool:
    """Whether a module is torch's own, and no wrapper around one of ours."""
    if type(module).__module__.split(".")[0] != "torch":
        return False
    classes = [c.__module__ for part in module.modules() for c in type(part).__mro__]
    return not any(name.startswith("sparsevox.") for name in classes)


class Linear(Module):
    """A linear map of the channels, as `torch.nn.Linear`."""

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
        """The channels."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features [N, out_features]."""
        x = self._check_input(x)
        check_channels(self, x, self.in_features)
        return x.map(self._apply_rows)

    def _apply_rows(self, feats: Tensor) -> Tensor:
        return linear(feats, self.weight, self.bias)


def linear(feats: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map in the dtype of the features, whatever that of the weights, as in convolutions."""
    return torch.nn.functional.linear(feats, weight.to(feats.dtype), None if bias is None else bias.to(feats.dtype))
