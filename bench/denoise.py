"""The denoisers of the demo: training and sampling steps, compared with the same layers in the other kind of space.

The coarse one, on dense volumes, is compared with itself on the voxels of the full box; the fine one, on sparse voxels,
with itself on dense volumes that are zero where there is no voxel.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import sparsevox as sv
from bench import masked
from bench.harness import Case, Contender, close
from bench.xcube import TOLERANCE, Result, flat, precisely, random, shapes, step
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, Solver
from xcube.networks.conditions import Conditions
from xcube.networks.unet import UNet
from xcube.training.presets import read_preset

HALF = 8  # half the edge of the box of the fine latents, in voxels
SHAPES = 8


def boxes(coords: Tensor) -> sv.Voxels:
    """Make `SHAPES` full boxes around zero, which together have as many voxels as the scene."""
    half = round((len(coords) / SHAPES) ** (1 / 3)) // 2
    return sv.Voxels(sv.Grid.full([-half] * 3, [half] * 3, batch_size=SHAPES, device=coords.device))


class Problem:
    """A denoiser of the demo, its twin, and noisy latents of eight shapes.

    Layers that start at zero get random weights, since nothing would depend on the layers before them otherwise.
    """

    def __init__(self, coords: Tensor, level: int) -> None:
        options = next(part.options for part in read_preset("demo") if part.name == f"denoiser-{level}")
        config, self.diffusion = options["model"], Diffusion(options.get("diffusion", DiffusionConfig()))
        voxels = boxes(coords) if config.dense else shapes(coords, SHAPES, 1 / (2 * HALF))
        self.grid = voxels.grid
        torch.manual_seed(0)
        self.net = UNet(config).to(coords.device)
        for parameter in self.net.parameters():
            if not bool(parameter.any()):
                torch.nn.init.normal_(parameter, std=0.05)
        if config.dense:
            self.twin = UNet(replace(config, dense=False)).to(coords.device)
            self.twin.load_state_dict(self.net.state_dict())
        else:
            self.twin = masked.denoiser(self.net, self.grid, HALF)
        if config.fill:
            voxels = voxels.with_attributes(fill=torch.ones(self.grid.num_voxels, device=coords.device))
        category = self.grid.ijk.new_zeros(self.grid.batch_size) if config.categories else None
        self.conditions = Conditions.from_voxels(voxels, config, category=category)
        like = torch.zeros((), device=coords.device)
        noise = random(self.grid.num_voxels, 2 * config.latent_channels, like=like)
        self.latents, self.noise = sv.SparseTensor(self.grid, noise[:, ::2]), noise[:, 1::2]
        times = torch.linspace(0, 999, SHAPES, device=coords.device)
        self.times = times if self.diffusion.is_flow else times.long()

    def training(self, net: UNet) -> Callable[[], Result]:
        """Make a training step: forward, loss, backward and AdamW, and kernel maps, since each batch needs its own."""
        finish = step(net, "enter.weight", "out.conv.weight")

        def run() -> Result:
            self.grid.clear_cache()
            return finish(self.diffusion.loss(net, self.latents, self.conditions, self.times, self.noise))

        return run

    def sampling(self, net: UNet) -> Callable[[], Result]:
        """Make a sampling step: prediction and solver. Kernel maps are cached, as in all steps but the first."""
        sampler = SamplerConfig(sampler="flow" if self.diffusion.is_flow else "ddim")
        times = Solver(sampler, self.diffusion.config).times
        t = times[len(times) // 2]
        # A grid caches coarser ones, and they their kernel maps, only while they are referenced.
        coarser = [self.grid]
        for _ in net.config.multipliers[1:]:
            coarser.append(coarser[-1].coarsen(2))

        def run() -> Result:
            assert coarser
            with torch.no_grad():
                solver = Solver(sampler, self.diffusion.config)  # the one of a flow counts its steps
                prediction = net(self.latents, t.to(self.grid.device).expand(SHAPES), self.conditions).feats
                return (solver.step(prediction, t, self.latents.feats, None),)

        return run


def contenders(coords: Tensor, *, level: int, sampling: bool) -> Sequence[Contender]:
    """Make the denoiser and its twin, which is the baseline."""
    p = Problem(coords, level)
    calls = (p.sampling if sampling else p.training)(p.net), (p.sampling if sampling else p.training)(p.twin)
    ours, theirs = (precisely(coords.device, call) for call in calls)
    name = "sparsevox, sparse on the full box" if p.net.config.dense else "plain torch, dense and masked"
    return Contender("sparsevox", ours, view), Contender(name, theirs, view, baseline=True)


def view(result: Result) -> Tensor:
    """Return the latents, or a loss and gradients, as one tensor."""
    return result[0] if len(result) == 1 else flat(result)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield cases of eight shapes: boxes of 4^3 (coarse level), pieces of a sphere in boxes of 16^3 (fine level)."""
    levels = ((0, "coarse", "block", 8), (1, "fine", "shell", 12 if quick else 30))
    for sampling, what in ((False, "training step"), (True, "sampling step")):
        for level, name, scene, size in levels:
            run = functools.partial(contenders, level=level, sampling=sampling)
            op = f"XCube, {name} denoiser, {what}, batch of {SHAPES}"
            yield Case(op, scene, size, run, agree=close(TOLERANCE), dtype="float32", rounds=7)
