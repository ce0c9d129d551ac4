"""One level of the cascade: its networks, checks that they fit each other, and their use on a batch of shapes.

M latent voxels, N decoded voxels, L latent channels, B shapes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

import sparsevox as sv
from sparsevox import Grid, SparseTensor, Voxels
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, check_sampler
from xcube.geometry.pyramid import TOLERANCE
from xcube.networks.blocks import centers
from xcube.networks.conditions import DROPPED, OF_VOXELS
from xcube.networks.configs import VAEConfig
from xcube.networks.decoder import tidy
from xcube.networks.pretrained import KINDS
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE

Size = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Level:
    """The networks of one level of the cascade, and their metadata.

    Args:
        vae: Sparse structure VAE: voxels to latents and back.
        denoiser: U-Net that denoises the latents.
        refiner: Network that refines decoded voxels, if any.
        latent_scale: Factor from the latents of the VAE to those of the denoiser: 1 / their standard deviation.
        diffusion: Training objective of the denoiser.
        sampler: Sampler that is used by default.
        categories: Names of the categories of the denoiser, in order; empty if they only have numbers.
        words: Words of captions that the denoiser knows, in order; empty if it takes none.
        dropped: Conditions that were dropped at random in training, so that classifier-free guidance can use them.
        metadata: Further metadata by network, "vae", "denoiser" and "refiner"; it is kept in their folders.
    """

    vae: VAE
    denoiser: UNet
    refiner: Refiner | None = None
    latent_scale: float = 1.0
    diffusion: DiffusionConfig = DiffusionConfig()  # noqa: RUF009  (immutable)
    sampler: SamplerConfig = SamplerConfig()  # noqa: RUF009  (immutable)
    categories: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    dropped: tuple[str, ...] = DROPPED
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks by kind: "vae", "denoiser" and, if there is one, "refiner"."""
        found = {"vae": self.vae, "denoiser": self.denoiser, "refiner": self.refiner}
        return {kind: model for kind, model in found.items() if model is not None}

    @cached_property
    def objective(self) -> Diffusion:
        """The diffusion process of the denoiser."""
        return Diffusion(self.diffusion)

    @property
    def has_guidance(self) -> bool:
        """Whether classifier-free guidance has an effect: some condition was dropped in training."""
        return bool(set(self.dropped) & set(self.denoiser.config.conditions))

    def empty(self) -> Voxels:
        """A grid without voxels, with the attributes that this level decodes, on the CPU."""
        config = self.vae.config
        x, y, z = (size / 2 for size in config.voxel_sizes)
        attributes = {name: torch.zeros(0, 3) for name in ("normal", "color") if getattr(config, name)}
        if config.fill:
            attributes["fill"] = torch.zeros(0)
        if config.num_labels:
            attributes["label"] = torch.zeros(0, dtype=torch.int64)
        return Voxels(Grid.empty(1, voxel_size=config.voxel_sizes, origin=(x, y, z)), attributes)

    def decoded_size(self, latents: SparseTensor) -> int:
        """Number of voxels that latents [M, L] of a surface are expected to decode to: M * factor^2."""
        return math.ceil(latents.grid.num_voxels * math.prod(self.vae.config.factor) ** (2 / 3))

    @torch.no_grad()
    def decode(self, latents: Sequence[SparseTensor]) -> list[Voxels]:
        """Voxels with attributes of each shape from its latents [M, L]."""
        return tidy(self.vae.decode(sv.stack(list(latents)), generated=True).voxels).unbind()

    @torch.no_grad()
    def refine(self, decoded: Sequence[Voxels], box: Size) -> list[Voxels]:
        """The decoded voxels of each shape, refined and cropped to the box; as they are without a refiner."""
        if self.refiner is None:
            return list(decoded)
        before = Voxels.stack(list(decoded))
        after = tidy(self.refiner.refine(before))
        # Attributes that only the VAE decodes come from the nearest decoded voxel.
        missing = {name: value for name, value in before.attributes.items() if name not in after.attributes}
        if missing:
            nearest = torch.zeros(0, dtype=torch.int64, device=after.device)
            if after.num_voxels:
                nearest = before.grid.nearest(centers(after.grid, torch.float64), after.grid.batch)
            after = after.with_attributes(**{name: value[nearest] for name, value in missing.items()})
        inside = in_box(after.grid, box)
        return (after if bool(inside.all()) else after.prune(inside)).unbind()


def in_box(grid: Grid, size: Size) -> torch.Tensor:
    """Whether each voxel lies in the box of these edges around the origin: bool [N]."""
    half = torch.tensor([round(e / (2 * s)) for e, s in zip(size, grid.voxel_size, strict=True)], device=grid.device)
    return ((grid.ijk >= -half) & (grid.ijk < half)).all(1)


def latent_voxel_size(config: VAEConfig) -> Size:
    """Edge lengths of a latent voxel, in world units."""
    x, y, z = (size * factor for size, factor in zip(config.voxel_sizes, config.factor, strict=True))
    return x, y, z


def level_resolutions(levels: Sequence[Level], size: Size) -> tuple[int, ...]:
    """Number of voxels of each level along the first axis of a box with these edges."""
    return tuple(round(size[0] / level.vae.config.voxel_sizes[0]) for level in levels)


def same_size(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether edges are equal up to rounding."""
    return all(abs(a - b) <= TOLERANCE * b for a, b in zip(first, second, strict=True))


def check_levels(levels: Sequence[Level]) -> None:
    """Raise TypeError or ValueError unless the networks of each level fit each other and the level before."""
    if not levels:
        raise ValueError("levels must hold at least one level, got none")
    for number, level in enumerate(levels):
        _check_types(level, f"levels[{number}]")
        _check_level(level, f"levels[{number}]")
        _check_next(levels[number - 1] if number else None, level, f"levels[{number}]")
    channels = {c for c in (level.denoiser.config.text_channels for level in levels) if c}
    if len(channels) > 1:
        raise ValueError(f"levels must take the embeddings of one text model, got text_channels {sorted(channels)}")


def _check_types(level: Level, name: str) -> None:
    if not isinstance(level, Level):
        raise TypeError(f"{name} must be a Level, got {type(level).__name__}")
    for kind, model in level.networks.items():
        if not isinstance(model, KINDS[kind][0]):
            raise TypeError(f"{name}.{kind} must be a {KINDS[kind][0].__name__}, got {type(model).__name__}")


def _check_level(level: Level, name: str) -> None:
    """Raise ValueError unless the networks of one level fit each other."""
    vae, denoiser = level.vae.config, level.denoiser.config
    if denoiser.latent_channels != vae.latent_channels:
        raise ValueError(
            f"{name}.denoiser must have the latent_channels of the VAE, {vae.latent_channels}, got "
            f"{denoiser.latent_channels}"
        )
    if denoiser.dense and vae.dense_neck is None:
        raise ValueError(f"{name}.denoiser must not be dense: without dense_neck the latents of the VAE fill no box")
    if denoiser.observed not in (0, math.prod(vae.factor)):
        raise ValueError(
            f"{name}.denoiser must take observations of the {math.prod(vae.factor)} voxels in a latent voxel, or none, "
            f"got {denoiser.observed}"
        )
    try:
        check_sampler(level.sampler, level.diffusion)
    except ValueError as error:
        raise ValueError(f"{name}.sampler does not fit its denoiser: {error}") from error
    if not 0 < level.latent_scale < float("inf"):
        raise ValueError(f"{name}.latent_scale must be positive and finite, got {level.latent_scale}")
    if level.categories and len(level.categories) != denoiser.categories:
        raise ValueError(
            f"{name}.categories must have {denoiser.categories} entries, as the denoiser, got {list(level.categories)}"
        )
    if denoiser.box not in (0, 0 if vae.dense_neck is None else 8 * math.prod(vae.dense_neck)):
        raise ValueError(f"{name}.denoiser must have the box of the VAE, with {vae.dense_neck}, got {denoiser.box}")
    if len(level.words) != denoiser.words:
        raise ValueError(f"{name}.words must have {denoiser.words} entries, as the denoiser, got {len(level.words)}")
    if level.refiner is None:
        return
    refiner = level.refiner.config
    if not same_size((refiner.voxel_size,) * 3, vae.voxel_sizes):
        raise ValueError(f"{name}.refiner must have the voxel_size {vae.voxel_sizes}, got {refiner.voxel_size}")
    if (refiner.normal and not vae.normal) or refiner.num_labels not in (0, vae.num_labels):
        raise ValueError(
            f"{name}.refiner must take the normal and num_labels that the VAE decodes, {vae.normal} and "
            f"{vae.num_labels}, got {refiner.normal} and {refiner.num_labels}"
        )


def _check_next(before: Level | None, level: Level, name: str) -> None:
    """Raise ValueError unless a level fits the one before it, if there is one."""
    vae, denoiser = level.vae.config, level.denoiser.config
    if before is None:
        if vae.dense_neck is not None and set(OF_VOXELS) & set(denoiser.conditions):
            taken = ", ".join(OF_VOXELS)
            raise ValueError(f"{name}.denoiser must not take {taken}: no level comes before the first")
        return
    above = before.vae.config
    if vae.dense_neck is not None:
        raise ValueError(f"{name}.vae must have no dense_neck, since only the first level fills a box")
    if not same_size(latent_voxel_size(vae), above.voxel_sizes):
        raise ValueError(
            f"{name}.vae must have latent voxels of {above.voxel_sizes}, as the level before makes, got "
            f"{latent_voxel_size(vae)}"
        )
    for attribute in ("normal", "color", "fill"):
        if getattr(denoiser, attribute) and not getattr(above, attribute):
            raise ValueError(f"{name}.denoiser takes {attribute}, which the VAE of the level before does not decode")
    if denoiser.num_labels not in (0, above.num_labels):
        raise ValueError(
            f"{name}.denoiser must have num_labels {above.num_labels}, as the VAE of the level before decodes, or 0, "
            f"got {denoiser.num_labels}"
        )
