"""Modules for sparse tensors, named as in `torch.nn`.

Each takes a `SparseTensor` and returns one, except `GlobalPool`, which returns a tensor [B, C]. Modules that change the
voxels also accept the output grid: `module(x, grid=...)`. Use `Sequential` to combine them with modules of `torch.nn`.
"""

from sparsevox.nn.attention import Attention
from sparsevox.nn.conv import Conv3d, ConvTranspose3d
from sparsevox.nn.convert import convert_weight
from sparsevox.nn.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, SyncBatchNorm
from sparsevox.nn.pool import (
    AvgPool3d,
    ChannelToSpace,
    GlobalPool,
    MaxPool3d,
    Prune,
    SpaceToChannel,
    SumPool3d,
    Upsample,
)
from sparsevox.nn.rowwise import Linear, Sequential

__all__ = [
    "Attention",
    "AvgPool3d",
    "BatchNorm",
    "ChannelToSpace",
    "Conv3d",
    "ConvTranspose3d",
    "GlobalPool",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Linear",
    "MaxPool3d",
    "Prune",
    "RMSNorm",
    "Sequential",
    "SpaceToChannel",
    "SumPool3d",
    "SyncBatchNorm",
    "Upsample",
    "convert_weight",
]
