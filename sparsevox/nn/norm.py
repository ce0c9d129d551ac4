"""Normalization layers. Group and instance norm use statistics per batch item, batch norm over the whole batch.

N voxels, B grids, C channels.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparsevox import ops
from sparsevox.nn._base import Module, check_channels, check_sparse
from sparsevox.tensor import SparseTensor


class GroupNorm(Module):
    """Group normalization (Wu & He 2018, arXiv:1803.08494), as `torch.nn.GroupNorm`.

    Mean and variance are taken per batch item and group, over all its voxels and the channels of the group.

    Shape:
        Input and output: features [N, C] on the same voxels.

    Args:
        num_groups: Number of groups. Must divide `num_channels`.
        num_channels: Number of channels C.
        eps: Value added to the variance for numerical stability.
        affine: Whether to learn a weight and a bias per channel.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If `num_groups` does not divide `num_channels`.
    """

    weight: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"num_groups must divide num_channels = {num_channels}, got {num_groups}")
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        _make_affine(self, num_channels, affine, device, dtype)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.weight is not None}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalize features [N, C]."""
        x = self._check_input(x)
        check_channels(self, x, self.num_channels)
        return x.replace(ops.group_norm(x.feats, x.grid, self.num_groups, self.weight, self.bias, self.eps))


class InstanceNorm(Module):
    """Instance normalization (Ulyanov et al. 2016, arXiv:1607.08022), as `torch.nn.InstanceNorm3d`.

    Mean and variance are taken per batch item and channel, over all its voxels.

    Shape:
        Input and output: features [N, C] on the same voxels.

    Args:
        num_channels: Number of channels C.
        eps: Value added to the variance for numerical stability.
        affine: Whether to learn a weight and a bias per channel.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    weight: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_channels, self.eps = num_channels, eps
        _make_affine(self, num_channels, affine, device, dtype)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, affine={self.weight is not None}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalize features [N, C]."""
        x = self._check_input(x)
        check_channels(self, x, self.num_channels)
        return x.replace(ops.instance_norm(x.feats, x.grid, self.weight, self.bias, self.eps))


class LayerNorm(torch.nn.LayerNorm):
    """Layer normalization (Ba et al. 2016, arXiv:1607.06450): `torch.nn.LayerNorm(C)` over the channels of each voxel.

    Shape:
        Input and output: features [N, C] on the same voxels.

    Args:
        normalized_shape: Number of channels C. The other arguments are those of `torch.nn.LayerNorm`.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """Normalize features [N, C]."""
        check_channels(self, check_sparse(self, x), self.normalized_shape[-1])
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        return x.map(lambda f: torch.nn.functional.layer_norm(f, self.normalized_shape, weight, bias, self.eps))


class RMSNorm(torch.nn.RMSNorm):
    """Root mean square normalization (Zhang & Sennrich 2019, arXiv:1910.07467) over the channels of each voxel.

    Shape:
        Input and output: features [N, C] on the same voxels.

    Args:
        normalized_shape: Number of channels C. The other arguments are those of `torch.nn.RMSNorm`.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """Normalize features [N, C]."""
        check_channels(self, check_sparse(self, x), self.normalized_shape[-1])
        weight = None if self.weight is None else self.weight.to(x.dtype)  # autocast does not cast it
        return x.map(lambda feats: torch.nn.functional.rms_norm(feats, self.normalized_shape, weight, self.eps))


class BatchNorm(torch.nn.BatchNorm1d):
    """Batch normalization (Ioffe & Szegedy 2015, arXiv:1502.03167): `torch.nn.BatchNorm1d(C)` over all voxels.

    Mean and variance are taken per channel, over the voxels of the whole batch. Fewer than two voxels have no variance:
    such a batch is normalized with the running statistics in training as well, and does not update them.

    Shape:
        Input and output: features [N, C] on the same voxels.

    Args:
        num_features: Number of channels C. The other arguments are those of `torch.nn.BatchNorm1d`.

    Raises:
        ValueError: In `forward`, if the features are float64 and the parameters are not.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """Normalize features [N, C]."""
        check_channels(self, check_sparse(self, x), self.num_features)
        if x.dtype == torch.float64 and any(p.dtype != x.dtype for p in self.parameters()):
            raise ValueError(
                f"parameters of {type(self).__name__} must be float64 for float64 features; convert one of them"
            )
        if torch.compiler.is_compiling() and self.training:
            return x.map(self._by_sums)
        if self.training and x.feats.shape[0] < 2:
            return x.map(self._by_running_statistics)
        return x.map(super().forward)

    def _by_running_statistics(self, feats: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            mean, var = feats.new_zeros(self.num_features), feats.new_ones(self.num_features)
        return torch.nn.functional.batch_norm(feats, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def _by_sums(self, feats: Tensor) -> Tensor:
        exact = feats if feats.dtype == torch.float64 else feats.float()
        totals = self._total(torch.cat([exact.new_ones(1) * feats.shape[0], exact.sum(0)]))
        count = totals[0].clamp(min=1)
        mean = totals[1:] / count
        var = self._total((exact - mean).square().sum(0)) / count
        old_mean, old_var = self.running_mean, self.running_var
        if old_mean is None or old_var is None:
            old_mean, old_var = torch.zeros_like(mean), torch.ones_like(var)
        mean_used, var_used = torch.where(count > 1, mean, old_mean), torch.where(count > 1, var, old_var)
        normal = (exact - mean_used) * torch.rsqrt(var_used + self.eps)
        self._update(mean.detach(), var.detach(), count.detach())
        # = (exact - mean) * torch.rsqrt(var + self.eps)
        if self.weight is not None:
            normal = normal * self.weight + self.bias
        return normal.to(feats.dtype)

    def _total(self, sums: Tensor) -> Tensor:
        """Sum over all processes with common statistics, here only this one."""
        return sums

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        several = count > 1  # one voxel has no variance
        self.num_batches_tracked.add_(several.to(self.num_batches_tracked.dtype))
        rate = 1 / self.num_batches_tracked.clamp(min=1) if self.momentum is None else self.momentum
        rate = rate * several.to(mean.dtype)
        unbiased = var * count / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate.to(self.running_mean.dtype))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate.to(self.running_var.dtype))


class SyncBatchNorm(BatchNorm):
    """Batch normalization over the voxels of all processes of the default group of `torch.distributed`.

    It works with every backend, and ranks may have different numbers of voxels, or none. Shapes and arguments are those
    of `BatchNorm`.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """Normalize features [N, C]."""
        if not self.training or not dist.is_available() or not dist.is_initialized():
            return super().forward(x)
        check_channels(self, check_sparse(self, x), self.num_features)
        return x.map(self._by_sums)

    def _total(self, sums: Tensor) -> Tensor:
        total: Tensor = _SumOverRanks.apply(sums)  # type: ignore[no-untyped-call]
        return total


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduced gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def _make_affine(
    module: torch.nn.Module, channels: int, affine: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    """Register a weight of ones and a bias of zeros, or None for both."""
    for name, fill in (("weight", torch.ones), ("bias", torch.zeros)):
        parameter = torch.nn.Parameter(fill(channels, device=device, dtype=dtype)) if affine else None
        module.register_parameter(name, parameter)
