"""Operations on features: functions that take tensors, grids and kernel maps, and return tensors."""

from sparsevox.ops.attention import attention
from sparsevox.ops.conv import conv3d, conv_transpose3d
from sparsevox.ops.dense import from_dense, to_dense
from sparsevox.ops.neighbors import neighbor_table
from sparsevox.ops.norm import group_norm, instance_norm
from sparsevox.ops.pool import avg_pool3d, max_pool3d, sum_pool3d, upsample
from sparsevox.ops.sample import sample_nearest, sample_trilinear, splat_trilinear
from sparsevox.ops.segment import broadcast, global_pool, segment_reduce

__all__ = [
    "attention",
    "avg_pool3d",
    "broadcast",
    "conv3d",
    "conv_transpose3d",
    "from_dense",
    "global_pool",
    "group_norm",
    "instance_norm",
    "max_pool3d",
    "neighbor_table",
    "sample_nearest",
    "sample_trilinear",
    "segment_reduce",
    "splat_trilinear",
    "sum_pool3d",
    "to_dense",
    "upsample",
]
