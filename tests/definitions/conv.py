"""Convolution and its transpose, voxel by voxel and tap by tap.

Weights have the layouts of torch: `[C_out, C_in / groups, k0, k1, k2]`; transposed, `[C_in, C_out / groups, ...]`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox.testing import Voxel
from tests.definitions.neighbors import Geometry, fine_voxel, taps


def conv3d(
    feats: Tensor, weight: Tensor, fine: Sequence[Voxel], coarse: Sequence[Voxel], geometry: Geometry, groups: int = 1
) -> Tensor:
    """Each coarse voxel sums weight @ features over the fine voxels that its taps meet: [M, C_out]."""
    x = dict(zip(fine, feats, strict=True))
    out = feats.new_zeros(len(coarse), weight.shape[0])
    for row, voxel in enumerate(coarse):
        for tap in taps(geometry):
            source = x.get(fine_voxel(voxel, tap, geometry))
            if source is not None:
                matrices, parts = weight[(..., *tap)].chunk(groups), source.chunk(groups)
                out[row] += torch.cat([w @ part for w, part in zip(matrices, parts, strict=True)])
    return out


def conv_transpose3d(
    feats: Tensor, weight: Tensor, fine: Sequence[Voxel], coarse: Sequence[Voxel], geometry: Geometry, groups: int = 1
) -> Tensor:
    """Each coarse voxel adds features @ weight to the fine voxels that its taps meet: [N, C_out]."""
    out = {voxel: feats.new_zeros(weight.shape[1] * groups) for voxel in fine}
    for voxel, x in zip(coarse, feats, strict=True):
        for tap in taps(geometry):
            target = fine_voxel(voxel, tap, geometry)
            if target in out:
                matrices, parts = weight[(..., *tap)].chunk(groups), x.chunk(groups)
                out[target] += torch.cat([part @ w for w, part in zip(matrices, parts, strict=True)])
    return torch.stack([out[voxel] for voxel in fine]) if fine else feats.new_zeros(0, weight.shape[1] * groups)
