"""Small random networks for tests of cascades, and what such tests ask of shapes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.losses import voxel_iou
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.level import Level
from xcube.pipeline.options import Sample

LATENT = 2  # channels
LABELS = 3  # of the networks that know of labels


def random(model: Any, seed: int, std: float = 0.2) -> Any:
    """The network with random parameters, also those that begin at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def halved(vae: VAE, root: float = 0.0) -> VAE:
    """The same, of whose candidates about half exist; more at the first depth, if `root` is positive."""
    for head in vae.decoder.heads:
        torch.nn.init.zeros_(head.get_parameter("out.bias"))
    torch.nn.init.constant_(vae.decoder.root.out.bias, root)
    return vae


def vae(level: int, **changes: Any) -> VAE:
    """4^3 latents fill the box of level 0, which makes 8^3; every further level makes twice as fine voxels."""
    small: dict[str, Any] = {"voxel_size": 1 / (8 << level), "channels": (4, 6), "latent_channels": 2, "hidden": 4}
    box = {"dense_neck": (2, 2, 2)} if level == 0 else {}
    return halved(random(VAE(VAEConfig(**(small | box | changes))), level), 0.5)


def unet(level: int, **changes: Any) -> UNet:
    """The denoiser of a level; all but the first take normals."""
    small: dict[str, Any] = {"latent_channels": 2, "channels": 4, "multipliers": (1, 2), "attention": (2,), "heads": 2}
    kind = {"dense": True} if level == 0 else {"normal": True}
    model: UNet = random(UNet(UNetConfig(**(small | kind | changes))), 10 + level)
    return model


def refiner(level: int, **changes: Any) -> Refiner:
    """Of a decode most stays, and little is added."""
    small: dict[str, Any] = {"voxel_size": 1 / (8 << level), "channels": (4, 4, 4)}
    model: Refiner = random(Refiner(RefinerConfig(**(small | changes))), 20 + level)
    torch.nn.init.constant_(model.prior, 0.4)
    torch.nn.init.constant_(model.keep.out.bias, -0.2)
    return model


def tiny(level: int, **changes: Any) -> Level:
    """A level of such networks."""
    usual: dict[str, Any] = {"vae": vae(level), "denoiser": unet(level), "latent_scale": 0.5 + level}
    return Level(**(usual | changes))


def labeled(level: int, kind: type[VAE] = VAE, **changes: Any) -> Level:
    """A level with labels and colors, the first one with a refiner, finer ones with categories.

    4 x 4 x 2 latents fill the box of level 0, which makes 8 x 8 x 4; further levels make twice as fine voxels.
    """
    neck = (2, 2, 1) if level == 0 else None
    options: dict[str, Any] = {"num_labels": LABELS, "label_dim": 2, "color": True, "dense_neck": neck}
    config = VAEConfig(1 / (8 << level), channels=(4, 6), latent_channels=LATENT, hidden=4, **options)
    taken: dict[str, Any] = {"normal": True, "num_labels": LABELS, "label_dim": 2, "categories": 2} if level else {}
    small: dict[str, Any] = {"channels": 4, "multipliers": (1, 2), "attention": (), "heads": 2}
    usual: dict[str, Any] = {
        "vae": halved(random(kind(config), level), 0.5),
        "denoiser": random(UNet(UNetConfig(LATENT, dense=level == 0, **small, **taken)), 10 + level),
        "refiner": None if level else refiner(0),  # it knows of normals only; labels and colors go past it
        "latent_scale": 0.5 + level,
    }
    return Level(**(usual | changes))


@contextmanager
def watched(model: torch.nn.Module, see: Callable[[Any], object]) -> Iterator[None]:
    """Shows the arguments of each call."""

    def hook(_: torch.nn.Module, args: Any) -> None:
        see(args)

    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def same_bits(first: Sequence[Sample], second: Sequence[Sample]) -> bool:
    """Whether shapes are the same in every level and attribute."""
    pairs = [(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x.levels, y.levels, strict=True)]
    return all(
        a.grid.same_voxels(b.grid)
        and a.attributes.keys() == b.attributes.keys()
        and all(torch.equal(value, b.attributes[name]) for name, value in a.attributes.items())
        for a, b in pairs
    )


def agree(first: Sample, second: Sample) -> None:
    """The same shape, but for the order of additions."""
    for a, b in zip(first.levels, second.levels, strict=True):
        assert float(voxel_iou(a.grid, b.grid)) >= 0.99
        assert (a.grid.voxel_size, a.grid.origin) == (b.grid.voxel_size, b.grid.origin)
        row = b.grid.index(a.grid.coords)
        both = row >= 0
        for name, value in a.attributes.items():
            close = (value - b.attributes[name][row])[both].abs() < 1e-2
            assert float(close.float().mean()) > 0.98
