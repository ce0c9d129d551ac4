"""Training steps, encoding and decoding of the networks of XCube, compared with the same layers on dense volumes.

Shapes are pieces of a scene. Decoders continue with the ground truth, as those of a trained network nearly do, so all
contenders compute on the same voxels and their results can be compared. N voxels, M latent voxels.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from bench import masked
from bench.conv import products
from bench.harness import Case, Contender, close
from xcube.networks.blocks import centers, embed_position
from xcube.networks.configs import RefinerConfig, VAEConfig
from xcube.networks.losses import LossConfig, vae_losses
from xcube.networks.refiner import Refiner, refiner_losses
from xcube.networks.vae import VAE

HALF = 32  # half the edge of the box of dense volumes, in voxels
LOSS = LossConfig(structure=1.0, normal=0.3, kl=3e-4)
OFFICIAL = VAEConfig.official(
    voxel_size=0.0025, channels=(32, 64, 128), latent_channels=8, keep="union", keep_ratio=0.0
)  # the fine level of ShapeNet
TOLERANCE = 2e-3  # a whole network adds in another order
Result = tuple[Tensor, ...]


def shapes(coords: Tensor, pieces: int, voxel_size: float) -> sv.Voxels:
    """Cut a scene at the center into a batch of 1, 2, 4 or 8 shapes, each in the middle of its box."""
    ijk = coords[:, 1:].long()
    item = torch.zeros_like(ijk[:, 0])
    for axis in range(pieces.bit_length() - 1):
        item = 2 * item + (ijk[:, axis] >= 0)
    middle = torch.stack([torch.stack(ijk[item == b].aminmax(dim=0)).sum(0) // 2 for b in range(pieces)])
    placed = torch.cat([item[:, None], ijk - middle[item]], 1).int()
    grid = sv.Grid.from_coords(placed, batch_size=pieces, voxel_size=voxel_size, origin=voxel_size / 2)
    normal = torch.empty(ijk.shape, device=ijk.device)
    normal[grid.index(placed)] = functional.normalize(ijk.float(), dim=1)
    return sv.Voxels(grid, {"normal": normal})


def random(*shape: int, like: Tensor) -> Tensor:
    """Draw standard normal numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like)


class Problem:
    """A VAE of the size of the demo, its twin on dense volumes, and shapes in a box of 64^3."""

    def __init__(self, coords: Tensor, pieces: int) -> None:
        self.voxels = shapes(coords, pieces, 1 / 64)
        self.grid, normal = self.voxels.grid, self.voxels.attributes["normal"]
        torch.manual_seed(0)
        self.net = VAE(VAEConfig(keep_ratio=0.0)).to(normal.device).train()
        self.twin = copy.deepcopy(self.net)
        self.latent = self.net.latent_grid(self.grid)
        self.noise = random(self.latent.num_voxels, self.net.config.latent_channels, like=normal)
        self.noise_volume = masked.volume(self.noise, self.latent, HALF // 4)
        self.normal = masked.volume(normal, self.grid, HALF)
        middle = masked.coarser(self.normal.mask)
        self.truth = (self.normal.mask, middle, masked.coarser(middle))

    def encoded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Encode with the twin: mean, log-variance and mask, on dense volumes."""
        rows = self.twin.encoder.enter(self.twin.encoder.featurizer(self.voxels)).feats
        return masked.encode(self.twin, masked.volume(rows, self.grid, HALF))


def step(net: torch.nn.Module, *probes: str) -> Callable[[Tensor], Result]:
    """Make the rest of a training step: it takes the loss and returns it with the gradients of some parameters."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def finish(loss: Tensor) -> Result:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        grads = [net.get_parameter(name).grad for name in probes]
        return loss.detach(), *(grad for grad in grads if grad is not None)

    return finish


def flat(result: Result) -> Tensor:
    """Join a loss and gradients, which are scaled to a maximum of 1, to one tensor."""
    loss, *grads = result
    return torch.cat([loss.reshape(1), *(grad.flatten() / grad.abs().amax() for grad in grads)])


def training(coords: Tensor, *, pieces: int, alone: bool = False) -> Sequence[Contender]:
    """Make training steps: forward, losses, backward and AdamW, and kernel maps, since each batch needs its own."""
    p, probes = Problem(coords, pieces), ("encoder.featurizer.mix.weight", "decoder.heads.0.out.weight")
    ours, theirs = step(p.net, *probes), step(p.twin, *probes)

    def sparse() -> Result:
        p.grid.clear_cache()
        posterior = p.net.encode(p.voxels)
        decoded = p.net.decode(posterior.sample(p.noise), p.grid)
        return ours(vae_losses(p.net, p.voxels, posterior, decoded, LOSS).total)

    def dense() -> Result:
        mean, logvar, mask = p.encoded()
        latents = masked.Volume((mean + torch.exp(0.5 * logvar) * p.noise_volume.feats) * mask, mask)
        logits, normal = masked.decode(p.twin, latents, p.truth)
        entropies = [masked.cross_entropy(x, real) for x, real in zip(logits, p.truth, strict=True)]
        loss = LOSS.structure * torch.stack(entropies).sum()
        loss = loss + LOSS.normal * masked.distance(normal.feats, p.normal.feats, p.normal.mask)
        return theirs(loss + LOSS.kl * masked.divergence(mean, logvar, mask))

    return contenders(coords, sparse, dense, flat)[: 1 if alone else 2]


def encoding(coords: Tensor, *, pieces: int) -> Sequence[Contender]:
    """Encode voxels to the mean of the latents, and build the kernel maps."""
    p = Problem(coords, pieces)

    def sparse() -> Result:
        p.grid.clear_cache()
        return (p.net.encode(p.voxels).mean,)

    def dense() -> Result:
        mean, _, mask = p.encoded()
        return (masked.Volume(mean, mask).rows(p.latent, HALF // 4),)

    return contenders(coords, torch.no_grad()(sparse), torch.no_grad()(dense), lambda result: result[0])


def decoding(coords: Tensor, *, pieces: int) -> Sequence[Contender]:
    """Decode latents to voxels and normals, and build the kernel maps."""
    p = Problem(coords, pieces)

    def sparse() -> Result:
        p.grid.clear_cache()
        p.latent.clear_cache()
        return (p.net.decode(sv.SparseTensor(p.latent, p.noise), p.grid).voxels.attributes["normal"],)

    def dense() -> Result:
        return (masked.decode(p.twin, p.noise_volume, p.truth)[1].rows(p.grid, HALF),)

    return contenders(coords, torch.no_grad()(sparse), torch.no_grad()(dense), lambda result: result[0])


def refining(coords: Tensor, *, pieces: int) -> Sequence[Contender]:
    """Make training steps of the refiner on shapes that lack a tenth of their voxels. Dense inputs are cached."""
    voxels = shapes(coords, pieces, 1 / 64)
    rough = voxels.prune(random(voxels.num_voxels, like=voxels.attributes["normal"]) > -1.28)
    torch.manual_seed(0)
    net = Refiner(RefinerConfig()).to(coords.device).train()
    twin, probes = copy.deepcopy(net), ("enter.weight", "keep.out.weight")
    ours, theirs = step(net, *probes), step(twin, *probes)
    truth = masked.volume(voxels.attributes["normal"], voxels.grid, HALF)
    given = masked.volume(rough.attributes["normal"], rough.grid, HALF)
    candidates = rough.grid.dilate(1)
    positions = masked.volume(embed_position(centers(candidates)), candidates, HALF)
    inputs = masked.Volume(torch.cat([given.mask, positions.feats, given.feats], 1), positions.mask)

    def sparse() -> Result:
        rough.grid.clear_cache()
        return ours(refiner_losses(net(rough), voxels).total)

    def dense() -> Result:
        keep, normal = masked.refine(twin, inputs)
        logits = masked.Volume(keep.feats + twin.prior * (2 * given.mask - 1), keep.mask)
        loss = masked.cross_entropy(logits, truth.mask)
        return theirs(loss + 0.3 * masked.distance(normal.feats, truth.feats, truth.mask * keep.mask))

    return contenders(coords, sparse, dense, flat)


def official(coords: Tensor) -> Sequence[Contender]:
    """Make training steps of the official VAE of ShapeNet's fine level, with activations stored or recomputed."""
    voxels = shapes(coords, 1, 0.0025)

    def trained(checkpointing: bool) -> Callable[[], Result]:
        torch.manual_seed(0)
        net = VAE(VAEConfig.from_dict(OFFICIAL.to_dict() | {"checkpointing": checkpointing})).to(coords.device).train()
        noise = random(net.latent_grid(voxels.grid).num_voxels, 8, like=voxels.attributes["normal"])
        finish = step(net, "encoder.featurizer.mix.weight", "decoder.heads.0.out.weight")

        def run() -> Result:
            voxels.grid.clear_cache()
            posterior = net.encode(voxels)
            decoded = net.decode(posterior.sample(noise), voxels.grid)
            return finish(vae_losses(net, voxels, posterior, decoded, LossConfig()).total)

        return precisely(coords.device, run)

    return (
        Contender("sparsevox", trained(False), flat),
        Contender("sparsevox, checkpointing", trained(True), flat),
    )


def contenders(
    coords: Tensor, sparse: Callable[[], Result], dense: Callable[[], Result], view: Callable[[Result], Tensor]
) -> Sequence[Contender]:
    """Make contenders of our network and its dense twin, the baseline."""
    return (
        Contender("sparsevox", precisely(coords.device, sparse), view),
        Contender("plain torch, dense and masked", precisely(coords.device, dense), view, baseline=True),
    )


def precisely(device: torch.device, run: Callable[[], Result]) -> Callable[[], Result]:
    """Wrap a call so that a GPU multiplies float32 without TF32."""

    @contextlib.contextmanager
    def ieee() -> Iterator[None]:
        before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # made at import
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        try:
            with products("ieee"):
                yield
        finally:
            torch.backends.cudnn.conv.fp32_precision = before  # type: ignore[attr-defined]

    @functools.wraps(run)
    def call() -> Result:
        with ieee():
            return run()

    return call if device.type == "cuda" else run


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield cases of two and eight shapes at 64^3, and the official network at 128^3, on a GPU also at 512^3.

    Eight dense volumes take a CPU more than half a minute, so they run on a GPU only.
    """

    def case(name: str, prepare: Callable[..., Sequence[Contender]], size: int, rounds: int, **options: Any) -> Case:
        run = functools.partial(prepare, **options)
        return Case(f"XCube, {name}", "shell", size, run, agree=close(TOLERANCE), dtype="float32", rounds=rounds)

    two, eight = (24, 44) if quick else (58, 116)
    yield case("VAE, training step, batch of 2", training, two, 3, pieces=2)
    yield case("VAE, training step, batch of 8", training, eight, 3, pieces=8, alone=device.type == "cpu")
    yield case("VAE, encode, batch of 2", encoding, two, 3, pieces=2)
    yield case("VAE, decode, batch of 2", decoding, two, 3, pieces=2)
    yield case("refiner, training step, batch of 2", refining, two, 3, pieces=2)
    for size in (32,) if quick else (128, 512) if device.type == "cuda" else (128,):
        yield case("official fine VAE, training step", official, size, 1)
