"""Speed and memory of each network of a cascade, in training and sampling: `python -m bench.networks`.

A training step is that of `xcube train`, without loading the batch and averaging the weights. In sampling, sixteen
shapes are decoded, refined, or denoised by some steps. Batches are procedural shapes, and weights are random, so the
decoders keep the voxels of the ground truth, as if they were trained. This is a separate command, because it measures
the peak memory of a process that does nothing else: one process per network and kind of work.
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

from bench.cascade import BETWEEN, CERTAIN, Meter, TeacherForcedVAE, box_around, teacher_forced
from sparsevox import SparseTensor, Voxels
from xcube.data.hierarchy import build_hierarchy
from xcube.diffusion.objective import Diffusion, DiffusionConfig, Noise
from xcube.diffusion.samplers import SamplerConfig, sample_latents
from xcube.networks.conditions import Conditions
from xcube.networks.losses import LossConfig
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.procedural.shapes import FAMILIES, shape_voxels
from xcube.training.denoiser import DenoiserModule
from xcube.training.jobs import TrainingJob
from xcube.training.latents import SHAPE_INDEX, ShapeConditions
from xcube.training.modules import NetworkModule, RefinerModule, VAEModule
from xcube.training.presets import cascade_presets, read_preset

WORK = ("training", "sampling")
SHAPES = 16  # per batch in sampling
HEAD = "     network      work  shapes    voxels    ms/step  steps/s  peak MB  idle MB"
STEPS = 10  # sampler steps per call, which share the kernel maps


class Work(NamedTuple):
    """A call to measure."""

    run: Callable[[], object]
    steps: int  # per call
    shapes: int  # in the batch
    rows: int  # input voxels: latent voxels in sampling and for a denoiser


def name_of(number: int) -> str:
    """Name a procedural shape, with all families in turn."""
    return f"{FAMILIES[number % len(FAMILIES)]}-{number // len(FAMILIES):06d}"


class Network:
    """A network of a preset, and batches of shapes for it."""

    def __init__(self, preset: str, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.jobs = {job.name: job for job in read_preset(preset)}
        self.job, self.device = self.jobs[name], device
        self.vae = self.jobs[f"vae-{self.job.level}"].options["model"]
        self.diffusion = self.job.options.get("diffusion", DiffusionConfig())

    def shapes(self, count: int) -> Voxels:
        """Generate procedural shapes at the level of the network."""
        vaes = [job.options["model"] for job in self.jobs.values() if job.kind == "vae"]
        box = box_around(vaes)
        shapes = (build_hierarchy(shape_voxels(name_of(number), box), box, fill=True) for number in range(count))
        return Voxels.stack([levels[self.job.level] for levels in shapes]).to(self.device)

    def training(self) -> Work:
        """Prepare a training step, including the kernel maps."""
        batch = self.shapes(self.job.train.batch_size)
        module = self.module(batch).to(self.device).train()
        if isinstance(module, DenoiserModule):
            batch = module.encode(batch.with_attributes(**{SHAPE_INDEX: batch.grid.batch}))
        optimizer, generator = module.configure_optimizers()["optimizer"], torch.Generator().manual_seed(0)

        def run() -> None:
            batch.grid.clear_cache()
            loss = module.losses(batch, 0, generator).total
            optimizer.zero_grad()
            loss.backward()
            module.configure_gradient_clipping(optimizer)
            optimizer.step()

        return Work(run, 1, batch.batch_size, batch.num_voxels)

    def module(self, batch: Voxels) -> NetworkModule:
        """Create the training module, without a time limit."""
        job, options = self.job, self.job.options
        train = replace(job.train, minutes=None)
        if job.kind == "vae":
            return VAEModule(VAE(teacher_forced(self.vae)), train, options.get("loss", LossConfig()))
        if job.kind == "denoiser":
            names = [name_of(number) for number in range(batch.batch_size)]
            conditions = {"train": ShapeConditions(names, options.get("categories", ()))}
            net, vae = UNet(options["model"]), VAE(self.vae)
            return DenoiserModule(net, train, vae, scale=1.0, diffusion=self.diffusion, shape_conditions=conditions)
        steps = {name: options[name] for name in ("first", "last") if name in options}
        vae = TeacherForcedVAE(self.vae, batch.grid)
        return RefinerModule(Refiner(options["model"]), train, vae, scale=1.0, **steps)

    @torch.no_grad()
    def sampling(self) -> Work:
        """Prepare a decoder call, some sampler steps, or a refiner call, including the kernel maps."""
        batch = self.shapes(SHAPES)
        if self.job.kind == "refiner":
            return self.refine(batch)
        vae = TeacherForcedVAE(self.vae, batch.grid).to(self.device).eval()
        grid, channels = vae.latent_grid(batch.grid), self.vae.latent_channels
        noise = Noise(0, range(SHAPES))
        if self.job.kind == "denoiser":
            return self.denoise(DenoiserModule(UNet(self.job.options["model"]), self.job.train, vae, scale=1.0), batch)
        latents = SparseTensor(grid, noise(grid, channels))

        def run() -> None:
            for each in (grid, *vae.tree):
                each.clear_cache()
            with torch.no_grad():
                vae.decode(latents)

        return Work(run, 1, SHAPES, grid.num_voxels)

    def denoise(self, module: DenoiserModule, batch: Voxels) -> Work:
        """Prepare sampler steps, each a call of the network and of the scheduler."""
        module.to(self.device).eval()
        latents = module.encode(batch)
        config = module.net.config
        category = latents.grid.ijk.new_zeros(latents.grid.batch_size) if config.categories else None
        conditions = Conditions.from_voxels(latents, config, category=category)
        diffusion = Diffusion(self.diffusion)
        sampler = SamplerConfig(sampler="flow" if diffusion.is_flow else "ddim", steps=STEPS)

        def run() -> None:
            latents.grid.clear_cache()
            noise, channels = Noise(0, range(SHAPES)), config.latent_channels
            sample_latents(
                module.net, latents.grid, channels, noise, diffusion=diffusion, sampler=sampler, conditions=conditions
            )

        return Work(run, STEPS, SHAPES, latents.num_voxels)

    def refine(self, batch: Voxels) -> Work:
        """Prepare a call of the refiner."""
        net = Refiner(self.job.options["model"]).to(self.device).eval()
        torch.nn.init.constant_(net.prior, CERTAIN)

        def run() -> None:
            batch.grid.clear_cache()
            with torch.no_grad():
                net.refine(batch)

        return Work(run, 1, SHAPES, batch.num_voxels)


def measure(work: Work, rounds: int, device: torch.device) -> dict[str, Any]:
    """Measure the median seconds per step over some calls, and the memory of the process in MB, idle and peak."""
    meter = Meter(device)
    meter.turn(BETWEEN)
    idle = meter.parts[BETWEEN].peak
    for _ in range(rounds):
        meter.turn("call")
        work.run()
        meter.turn(BETWEEN)
    cost = meter.parts["call"]
    found = {"seconds": statistics.median(cost.seconds) / work.steps, "peak": cost.peak / 1e6, "idle": idle / 1e6}
    return {"shapes": work.shapes, "rows": work.rows} | found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Measure speed and memory of each network of a cascade, in training and sampling."
    parser = argparse.ArgumentParser("python -m bench.networks", description=about)
    add = parser.add_argument
    add("--preset", default="demo", choices=cascade_presets(), help="preset of the networks (default: demo)")
    add("--rounds", type=int, default=5, help="number of calls, of which the median is taken (default: 5)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="device (default: cpu)")
    add("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    add("--one", nargs=2, metavar=("NETWORK", "WORK"), help="measure one network, in training or sampling; print JSON")
    options = parser.parse_args(arguments)
    names = [job.name for job in read_preset(options.preset)]
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.one and (options.one[0] not in names or options.one[1] not in WORK):
        parser.error(f"--one must be one of {', '.join(names)}, and one of {', '.join(WORK)}, got {options.one}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    if options.one:
        name, work = options.one
        torch.set_num_threads(options.threads)
        network = Network(options.preset, name, torch.device(options.device))
        prepare = {"training": network.training, "sampling": network.sampling}[work]
        print(json.dumps(measure(prepare(), options.rounds, network.device)))
        return 0
    print(HEAD)
    for work in WORK:
        for job in read_preset(options.preset):
            print(row(job, work, measure_in_process(job, work, options)), flush=True)
    return 0


def measure_in_process(job: TrainingJob, work: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a network in a new process."""
    values = {name: str(getattr(options, name)) for name in ("preset", "rounds", "device", "threads")}
    words = [word for name, value in values.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "bench.networks", "--one", job.name, work, *words]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def row(job: TrainingJob, work: str, found: dict[str, Any]) -> str:
    """Format a row of the table."""
    seconds, peak, idle = found["seconds"], found["peak"], found["idle"]
    size = f"{found['shapes']:>8}{found['rows']:>10,}"
    return f"{job.name:>12}{work:>10}{size}{1e3 * seconds:>11.1f}{1 / seconds:>9.2f}{peak:>9.0f}{idle:>9.0f}"


if __name__ == "__main__":
    sys.exit(main())
