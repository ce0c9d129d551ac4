"""Steps a second and memory of every stage of a cascade: `python -m bench.stages`, of the demo.

A bench of its own, because what counts is the peak of a process that does nothing else: each stage trains in one
process, and samples in another. A step of training is what `xcube train` does with a batch, but for loading it and for
the average of weights; batches are procedural shapes. In sampling sixteen shapes are decoded, repaired, or denoised a
step. Weights are random, so the shapes lead what decoders go on with, as in networks that have learned.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from bench.cascade import BETWEEN, CERTAIN, Led, Meter, box_around, guided
from sparsevox import SparseTensor, Voxels
from xcube.data.hierarchy import build_hierarchy
from xcube.diffusion.objective import Diffusion, DiffusionConfig, Noise
from xcube.diffusion.samplers import SamplerConfig, sample_latents
from xcube.networks.conditions import Conditions
from xcube.networks.losses import LossConfig
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.procedural.shapes import FAMILIES, make
from xcube.training.denoiser import TrainDenoiser
from xcube.training.jobs import Part, read_preset, whole_presets
from xcube.training.latents import NUMBER, Whole
from xcube.training.modules import Trained, TrainRefiner, TrainVAE

WORK = ("training", "sampling")
SHAPES = 16  # of a batch, in sampling
HEAD = "       stage      work  shapes    voxels  ms a step  steps/s  peak MB  at rest"
STEPS = 10  # of the sampler; maps of neighbors are made once for all of them


class Work(NamedTuple):
    """Something to measure.

    run: A call.
    steps: That it makes.
    shapes: Of its batch.
    rows: Voxels that it begins with: of the latents in sampling and for a denoiser.
    """

    run: Callable[[], object]
    steps: int
    shapes: int
    rows: int


def called(number: int) -> str:
    """Of a procedural shape: families take turns."""
    return f"{FAMILIES[number % len(FAMILIES)]}-{number // len(FAMILIES):06d}"


class Stage:
    """A part of a preset, and batches of shapes for it."""

    def __init__(self, preset: str, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.parts = {part.name: part for part in read_preset(preset)}
        self.part, self.device = self.parts[name], device
        self.vae = self.parts[f"vae-{self.part.level}"].options["model"]
        self.diffusion = self.part.options.get("diffusion", DiffusionConfig())

    def shapes(self, count: int) -> Voxels:
        """So many procedural shapes, at the level of the part."""
        vaes = [part.options["model"] for part in self.parts.values() if part.kind == "vae"]
        box = box_around(vaes)
        made = [build_hierarchy(make(called(number), box), box)[self.part.level] for number in range(count)]
        return Voxels.stack(made).to(self.device)

    def training(self) -> Work:
        """A step, with the search for neighbors."""
        batch = self.shapes(self.part.train.batch_size)
        module = self.trained(batch).to(self.device).train()
        if isinstance(module, TrainDenoiser):
            batch = module.encode(batch.with_attributes(**{NUMBER: batch.grid.batch}))
        optimizer, generator = module.configure_optimizers()["optimizer"], torch.Generator().manual_seed(0)

        def run() -> None:
            batch.grid.clear_cache()
            loss = module.losses(batch, 0, generator).total
            optimizer.zero_grad()
            loss.backward()
            module.configure_gradient_clipping(optimizer)
            optimizer.step()

        return Work(run, 1, batch.batch_size, batch.num_voxels)

    def trained(self, batch: Voxels) -> Trained:
        """What trains the part, for as long as it takes: only a trainer has a clock."""
        part, options = self.part, self.part.options
        train = replace(part.train, minutes=None)
        if part.kind == "vae":
            return TrainVAE(VAE(guided(self.vae)), train, options.get("loss", LossConfig()))
        if part.kind == "denoiser":
            names = [called(number) for number in range(batch.batch_size)]
            whole = {"train": Whole(names, options.get("categories", ()))}
            told: dict[str, Any] = {"diffusion": self.diffusion, "whole": whole}
            return TrainDenoiser(UNet(options["model"]), train, VAE(self.vae), scale=1.0, **told)
        steps = {name: options[name] for name in ("first", "last") if name in options}
        led = Led(self.vae, batch.grid)
        return TrainRefiner(Refiner(options["model"]), train, led, scale=1.0, **steps)

    @torch.no_grad()
    def sampling(self) -> Work:
        """A decode, some steps of the sampler, or a repair, each with the search for neighbors."""
        batch = self.shapes(SHAPES)
        if self.part.kind == "refiner":
            return self.repair(batch)
        vae = Led(self.vae, batch.grid).to(self.device).eval()
        grid, channels = vae.latent_grid(batch.grid), self.vae.latent_channels
        noise = Noise(0, range(SHAPES))
        if self.part.kind == "denoiser":
            return self.denoise(TrainDenoiser(UNet(self.part.options["model"]), self.part.train, vae, scale=1.0), batch)
        latents = SparseTensor(grid, noise(grid, channels))

        def run() -> None:
            for each in (grid, *vae.tree):
                each.clear_cache()
            with torch.no_grad():
                vae.decode(latents)

        return Work(run, 1, SHAPES, grid.num_voxels)

    def denoise(self, module: TrainDenoiser, batch: Voxels) -> Work:
        """Steps of the sampler: the network, then the scheduler."""
        module.to(self.device).eval()
        told = module.encode(batch)
        config = module.net.config
        category = told.grid.ijk.new_zeros(told.grid.batch_size) if config.categories else None
        conditions = Conditions.from_voxels(told, config, category=category)
        diffusion = Diffusion(self.diffusion)
        sampler = SamplerConfig(sampler="flow" if diffusion.is_flow else "ddim", steps=STEPS)

        def run() -> None:
            told.grid.clear_cache()
            noise, channels = Noise(0, range(SHAPES)), config.latent_channels
            sample_latents(
                module.net, told.grid, channels, noise, diffusion=diffusion, sampler=sampler, conditions=conditions
            )

        return Work(run, STEPS, SHAPES, told.num_voxels)

    def repair(self, batch: Voxels) -> Work:
        """A call of the refinement network."""
        net = Refiner(self.part.options["model"]).to(self.device).eval()
        torch.nn.init.constant_(net.prior, CERTAIN)

        def run() -> None:
            batch.grid.clear_cache()
            with torch.no_grad():
                net.refine(batch)

        return Work(run, 1, SHAPES, batch.num_voxels)


def measure(work: Work, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds a step, the median of some calls, and MB: those of the process at rest, and at its peak."""
    meter = Meter(device)
    meter.turn(BETWEEN)
    rest = meter.parts[BETWEEN].peak
    for _ in range(rounds):
        meter.turn("call")
        work.run()
        meter.turn(BETWEEN)
    cost = meter.parts["call"]
    found = {"seconds": statistics.median(cost.seconds) / work.steps, "peak": cost.peak / 1e6, "rest": rest / 1e6}
    return {"shapes": work.shapes, "rows": work.rows} | found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser("python -m bench.stages", description="Measure every stage of a cascade.")
    add = parser.add_argument
    add("--preset", default="demo", choices=whole_presets(), help="whose networks (default: demo)")
    add("--rounds", type=int, default=5, help="calls of which the median is taken (default: 5)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="where to run (default: cpu)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add("--alone", nargs=2, metavar=("STAGE", "WORK"), help="one stage, and training or sampling: print JSON")
    options = parser.parse_args(arguments)
    names = [part.name for part in read_preset(options.preset)]
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.alone and (options.alone[0] not in names or options.alone[1] not in WORK):
        parser.error(f"--alone must be one of {', '.join(names)}, and one of {', '.join(WORK)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    if options.alone:
        name, work = options.alone
        torch.set_num_threads(options.threads)
        stage = Stage(options.preset, name, torch.device(options.device))
        chosen = {"training": stage.training, "sampling": stage.sampling}[work]
        print(json.dumps(measure(chosen(), options.rounds, stage.device)))
        return 0
    print(HEAD)
    for work in WORK:
        for part in read_preset(options.preset):
            print(row(part, work, alone(part, work, options)), flush=True)
    return 0


def alone(part: Part, work: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own finds."""
    told = {name: str(getattr(options, name)) for name in ("preset", "rounds", "device", "threads")}
    words = [word for name, value in told.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "bench.stages", "--alone", part.name, work, *words]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def row(part: Part, work: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    seconds, peak, rest = found["seconds"], found["peak"], found["rest"]
    size = f"{found['shapes']:>8}{found['rows']:>10,}"
    return f"{part.name:>12}{work:>10}{size}{1e3 * seconds:>11.1f}{1 / seconds:>9.2f}{peak:>9.0f}{rest:>9.0f}"


if __name__ == "__main__":
    sys.exit(main())
