"""The networks of `xcube` in plain PyTorch: the same layers and weights on dense volumes that are zero off the voxels.

B grids, C channels, G groups. Volumes are [B, C, R, R, R], masks [B, 1, R, R, R] of the same dtype.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from xcube.networks.blocks import Head, ResBlock
from xcube.networks.refiner import Refiner
from xcube.networks.space import Context, Dense
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE


class Volume(NamedTuple):
    """Features, and the mask of the voxels that exist."""

    feats: Tensor
    mask: Tensor

    def rows(self, grid: sv.Grid, half: int) -> Tensor:
        """Take the features [N, C] of the voxels of a grid, in a box from -half."""
        b, i, j, k = grid.coords.long().unbind(1)
        return self.feats[b, :, i + half, j + half, k + half]


def volume(rows: Tensor, grid: sv.Grid, half: int) -> Volume:
    """Convert rows [N, C] of a grid in the box from -half to half."""
    b, i, j, k = grid.coords.long().unbind(1)
    shape = (grid.batch_size, 2 * half, 2 * half, 2 * half)
    at = (b, i + half, j + half, k + half)
    feats = rows.new_zeros((*shape, rows.shape[1])).index_put(at, rows).permute(0, 4, 1, 2, 3).contiguous()
    mask = rows.new_zeros(shape).index_put(at, rows.new_ones(1)).unsqueeze(1)
    return Volume(feats, mask)


def coarser(mask: Tensor) -> Tensor:
    """Coarsen a mask by 2."""
    return functional.max_pool3d(mask, 2)


def finer(x: Tensor) -> Tensor:
    """Upsample by 2 with nearest neighbors."""
    return functional.interpolate(x, scale_factor=2, mode="nearest")


def wider(mask: Tensor) -> Tensor:
    """Dilate a mask by 1."""
    return functional.max_pool3d(mask, 3, 1, 1)


def linear(module: torch.nn.Module, x: Volume) -> Volume:
    """Apply a linear map, or an identity."""
    if isinstance(module, torch.nn.Identity):
        return x
    weight = module.get_parameter("weight")[:, :, None, None, None]
    return Volume(functional.conv3d(x.feats, weight, module.get_parameter("bias")) * x.mask, x.mask)


def conv(module: sv.nn.Conv3d, x: Volume) -> Volume:
    """Apply a submanifold convolution with kernel size 3."""
    return Volume(functional.conv3d(x.feats, module.weight, module.bias, padding=1) * x.mask, x.mask)


def pool(module: torch.nn.Module, x: Volume, mask: Tensor) -> Volume:
    """Apply a convolution with kernel size and stride 2, to the voxels of a mask."""
    parameters = module.get_parameter("weight"), module.get_parameter("bias")
    return Volume(functional.conv3d(x.feats, *parameters, stride=2) * mask, mask)


def norm(module: sv.nn.GroupNorm | torch.nn.GroupNorm, x: Volume) -> Volume:
    """Apply GroupNorm with the statistics of the voxels of each grid; features are zero elsewhere."""
    assert module.weight is not None
    assert module.bias is not None
    groups = rearrange(x.feats, "b (g c) i j k -> b g (c i j k)", g=module.num_groups)
    count = x.mask.sum((2, 3, 4)).clamp(min=1) * (x.feats.shape[1] // module.num_groups)
    mean = groups.sum(2) / count
    rstd = (groups.square().sum(2) / count - mean.square() + module.eps).rsqrt()
    per_group = x.feats.shape[1] // module.num_groups
    mean, rstd = (repeat(part, "b g -> b (g c)", c=per_group) for part in (mean, rstd))
    scale = rstd * module.weight  # [B, C]
    shift = module.bias - mean * scale
    return Volume(torch.addcmul(shift[:, :, None, None, None] * x.mask, x.feats, scale[:, :, None, None, None]), x.mask)


def residual(block: torch.nn.Module, x: Volume) -> Volume:
    """Apply a `ResBlock`, or several."""
    for part in [block] if isinstance(block, ResBlock) else block.children():
        assert isinstance(part, ResBlock)
        y = conv(part.conv1, silu(norm(part.norm1, x)))
        y = conv(part.conv2, silu(norm(part.norm2, y)))
        x = Volume(linear(part.skip, x).feats + y.feats, x.mask)
    return x


def shuffled(feats: Tensor) -> Tensor:
    """Distribute the channels of each voxel to its children: [B, 8 C, I, J, K] to [B, C, 2 I, 2 J, 2 K]."""
    return rearrange(feats, "b (x y z c) i j k -> b c (i x) (j y) (k z)", x=2, y=2, z=2)


def silu(x: Volume) -> Volume:
    """Apply SiLU, which keeps zeros."""
    return Volume(functional.silu(x.feats), x.mask)


def head(module: Head, x: Volume) -> Volume:
    """Apply a `Head`: norm, SiLU and a linear map."""
    first = next(module.unit.children())
    assert isinstance(first, sv.nn.GroupNorm)
    return linear(module.out, silu(norm(first, x)))


def encode(net: VAE, x: Volume) -> tuple[Tensor, Tensor, Tensor]:
    """Encode the embedded input of a modern VAE with three resolutions: mean, log-variance and mask of the latents."""
    encoder, middle = net.encoder, coarser(x.mask)
    masks = (x.mask, middle, coarser(wider(middle)))
    for stage, mask in zip(encoder.stages, masks, strict=True):
        downsample = getattr(stage, "pool", None)
        x = residual(stage.get_submodule("block"), x if downsample is None else pool(downsample, x, mask))
    x = linear(encoder.out, residual(encoder.neck, x))
    mean, logvar = x.feats.chunk(2, 1)
    return mean, logvar, x.mask


def decode(net: VAE, latents: Volume, truth: Sequence[Tensor]) -> tuple[list[Volume], Volume]:
    """Decode, continuing with the ground truth: logits of the candidates, finest resolution first, and normals."""
    decoder = net.decoder
    x = residual(decoder.neck, linear(decoder.enter, latents))
    logits = [head(decoder.root, x)]
    keep = x.mask * truth[-1]
    x = Volume(x.feats * keep, keep)
    for resolution in reversed(range(len(truth) - 1)):
        part, lift = decoder.heads[resolution], decoder.lifts[resolution]
        assert isinstance(part, Head)
        children = Volume(shuffled(head(part, x).feats), finer(x.mask))
        logits.insert(0, children)
        keep = children.mask * truth[resolution]
        reduced = linear(lift.get_submodule("reduce"), x)
        x = residual(lift.get_submodule("block"), Volume(shuffled(reduced.feats) * keep, keep))
    assert decoder.normal is not None
    return logits, head(decoder.normal, x)


def refine(net: Refiner, x: Volume) -> tuple[Volume, Volume]:
    """Refine: logits (without the prior) and normals of the candidates, from the input features."""
    x, skips = linear(net.enter, x), []
    for resolution, blocks in enumerate(net.down):
        x = residual(blocks, x)
        if resolution < len(net.pool):
            skips.append(x)
            x = pool(net.pool[resolution], x, coarser(x.mask))
    for resolution in reversed(range(len(net.pool))):
        skip = skips[resolution]
        lifted = finer(linear(net.lift[resolution], x).feats) * skip.mask
        x = residual(net.up[resolution], Volume(torch.cat([skip.feats, lifted], 1), skip.mask))
    assert net.normal is not None
    return head(net.keep, x), head(net.normal, x)


def cross_entropy(logits: Volume, real: Tensor) -> Tensor:
    """Compute the cross entropy of existence, its mean over the candidates."""
    entropy = functional.binary_cross_entropy_with_logits(logits.feats, real, reduction="none")
    return (entropy * logits.mask).sum() / logits.mask.sum()


def distance(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean absolute difference over the voxels of a mask."""
    return ((a - b).abs() * mask).sum() / (mask.sum() * a.shape[1])


def divergence(mean: Tensor, logvar: Tensor, mask: Tensor) -> Tensor:
    """Compute the divergence from the standard normal distribution, summed over channels, its mean over voxels."""
    return (-0.5 * (1 + logvar - mean.square() - logvar.exp()) * mask).sum() / mask.sum()


class Masked(Dense):
    """The space of the twin of a sparse denoiser: dense volumes that are zero where a grid has no voxel.

    masks: The masks of the voxels by edge length of the volume, one per resolution.
    """

    def __init__(self, grid: sv.Grid, half: int) -> None:
        self.half = half
        mask = volume(torch.ones(grid.num_voxels, 1, device=grid.device), grid, half).mask
        self.masks = {2 * half: mask}
        while mask.shape[2] % 2 == 0:
            mask = coarser(mask)
            self.masks[mask.shape[2]] = mask

    def from_sparse(self, x: sv.SparseTensor) -> Tensor:
        return volume(x.feats, x.grid, self.half).feats

    def to_sparse(self, field: Tensor, like: sv.SparseTensor) -> sv.SparseTensor:
        return like.replace(self.volume(field).rows(like.grid, self.half))

    def volume(self, field: Tensor) -> Volume:
        """Add the mask to a field."""
        return Volume(field, self.masks[field.shape[2]])

    def conv(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        return MaskedConv(self, in_channels, out_channels)

    def norm(self, channels: int, groups: int, eps: float = 1e-5) -> torch.nn.Module:
        return MaskedNorm(self, math.gcd(groups, channels), channels, eps)

    def modulate(self, field: Tensor, values: Tensor) -> Tensor:
        return super().modulate(field, values) * self.volume(field).mask

    def down(self, field: Tensor) -> Tensor:
        """Average the voxels that exist."""
        fraction = functional.avg_pool3d(self.volume(field).mask, 2).clamp(min=1 / 8)
        return functional.avg_pool3d(field, 2) / fraction

    def up(self, field: Tensor, like: Tensor) -> Tensor:
        return super().up(field, like) * self.volume(like).mask

    def replace(self, field: Tensor, rows: Tensor) -> Tensor:
        return super().replace(field, rows) * self.volume(field).mask

    def attend(self, field: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context | None) -> Tensor:
        """Attend to the voxels that exist. Texts are not supported."""
        assert context is None
        mask = rearrange(self.volume(field).mask, "b 1 x y z -> b 1 1 (x y z)") > 0
        q, k, v = (rearrange(rows, "b n (h c) -> b h n c", h=heads) for rows in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return rearrange(out, "b h n c -> b n (h c)")


class MaskedConv(torch.nn.Conv3d):
    """A convolution with kernel size 3 whose output is zero where there is no voxel."""

    def __init__(self, space: Masked, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.space = space

    def forward(self, input: Tensor) -> Tensor:
        """Convolve a volume."""
        return super().forward(input) * self.space.volume(input).mask


class MaskedNorm(torch.nn.GroupNorm):
    """GroupNorm with the statistics of the voxels of each grid."""

    def __init__(self, space: Masked, groups: int, channels: int, eps: float) -> None:
        super().__init__(groups, channels, eps)
        self.space = space

    def forward(self, input: Tensor) -> Tensor:
        """Normalize a volume."""
        return norm(self, self.space.volume(input)).feats


def denoiser(net: UNet, grid: sv.Grid, half: int) -> UNet:
    """Make the twin of a sparse denoiser for latent grids in the box from -half to half: the same in another space."""
    twin, space = copy.deepcopy(net), Masked(grid, half)
    for module in list(twin.modules()):
        if "space" in vars(module):
            vars(module)["space"] = space
        for name, part in list(module.named_children()):
            if isinstance(part, sv.nn.Conv3d):
                setattr(module, name, space.conv(part.in_channels, part.out_channels))
            elif isinstance(part, sv.nn.GroupNorm):
                setattr(module, name, space.norm(part.num_channels, part.num_groups, part.eps))
    twin.load_state_dict(net.state_dict())
    return twin.to(grid.device)
