"""Memory and time of sampling with networks of the official size, 128^3 -> 512^3: `python -m bench.cascade spot.obj`.

`XCubePipeline` samples one shape, with classifier-free guidance at both levels. The weights are random, so the decoders
are guided by the structure of a real shape, as if they were trained, and the fine denoiser works on the grid of that
shape. This is a separate command, because it measures the peak memory of a process that holds all networks.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.harness import process_peak
from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.io import load_mesh
from xcube.data.hierarchy import Box, as_box, build_hierarchy
from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.decoder import Decoded
from xcube.networks.refiner import Refined, Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.level import Level, latent_voxel_size
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.presets import cascade_presets, read_preset

TARGET = 12  # maximum memory in GiB
BETWEEN = "between"  # name of the time between parts
CERTAIN = 1e6  # logit with which a refiner keeps the voxels as they are, despite its random weights

Networks = tuple[VAEConfig, UNetConfig, RefinerConfig]  # of one level


def teacher_forced(config: VAEConfig) -> VAEConfig:
    """Configure the decoder to keep exactly the voxels of the ground truth that it is given."""
    return replace(config, keep="union", keep_ratio=0.0)


class TeacherForcedVAE(VAE):
    """VAE with random weights whose decoder reproduces the structure of a given shape, as a trained one would."""

    def __init__(self, config: VAEConfig, shape: Grid) -> None:
        super().__init__(teacher_forced(config))
        self.tree = self.truth(shape)

    def decode(self, latents: SparseTensor, truth: Grid | None = None, *, generated: bool = False) -> Decoded:
        """Decode the given shape: at each resolution, the decoder keeps the candidates that belong to it."""
        return self.decoder(latents, self.tree)


@dataclass
class Cost:
    """Cost of all calls of a module, or of everything between such calls.

    Attributes:
        seconds: Duration of each call.
        peak: Maximum memory in bytes.
        rows: Maximum number of voxels of a call.
    """

    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    rows: int = 0


class Meter:
    """Measure time and peak memory of named parts of a program.

    Memory is that of the process, or that allocated by torch on a GPU. The high-water mark of a process can be reset on
    Linux only; elsewhere the peak of a part includes all parts before it.

    Attributes:
        parts: Costs by name.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict[str, Cost]()
        self._peak()
        self._name, self._start = BETWEEN, time.perf_counter()

    def watch(self, name: str, module: torch.nn.Module) -> None:
        """Measure the calls of a module, which returns voxels or candidates, as a part."""

        def end(_module: torch.nn.Module, _inputs: Any, result: Any) -> None:
            self.turn(BETWEEN)
            self.parts[name].rows = max(self.parts[name].rows, rows_of(result))

        module.register_forward_pre_hook(lambda *_: self.turn(name))
        module.register_forward_hook(end)

    def turn(self, name: str) -> None:
        """Attribute everything since the last call to the part named there, and start the part named here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        part = self.parts.setdefault(self._name, Cost())
        part.seconds.append(time.perf_counter() - self._start)
        part.peak = max(part.peak, self._peak())
        self._name, self._start = name, time.perf_counter()

    def _peak(self) -> int:
        """Read and reset the peak memory in bytes."""
        if self.device.type == "cuda":
            found = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return found
        status = Path("/proc/self/status")
        if not status.exists():
            return process_peak("cpu")
        mark = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return int(mark.split()[1]) * 1024


def rows_of(result: SparseTensor | Decoded | Refined) -> int:
    """Count the voxels of latents, or the candidates of a decoder (at the largest resolution) or a refiner."""
    if isinstance(result, Decoded):
        return max(decided.candidates.num_voxels for decided in result.structure)
    return result.candidates.num_voxels if isinstance(result, Refined) else result.grid.num_voxels


def configs(name: str) -> list[Networks]:
    """Read the networks of both levels of a preset.

    All levels get a refiner of the size of the finest one, or of the default if the preset has none.

    Denoisers are conditioned on a category, which costs next to nothing, so that guidance has an effect.
    """
    parts = {job.name: job.options["model"] for job in read_preset(name)}
    made = []
    for level in range(2):
        vae, unet = parts[f"vae-{level}"], parts[f"denoiser-{level}"]
        refiner = replace(parts.get("refiner-1", RefinerConfig()), voxel_size=vae.voxel_sizes[0])
        made.append((vae, replace(unet, categories=1), refiner))
    return made


def levels_of(mesh: str, vaes: Sequence[VAEConfig]) -> list[Voxels]:
    """Voxelize a mesh at the levels of the VAEs, scaled to the box of the latents of the first one."""
    return build_hierarchy(load_mesh(mesh), box_around(vaes), samples=100_000, outside="rescale", fill=True)


def box_around(vaes: Sequence[VAEConfig]) -> Box:
    """Create the box of the latents of the first VAE, with one level per VAE."""
    assert vaes[0].dense_neck is not None
    edge = 2 * vaes[0].dense_neck[0] * latent_voxel_size(vaes[0])[0]
    return as_box([round(edge / vae.voxel_sizes[0]) for vae in vaes], edge)


def pipeline_of(networks: Sequence[Networks], shape: Sequence[Voxels], device: torch.device) -> XCubePipeline:
    """Create a pipeline of all networks, with random weights, guided by a shape at each level."""
    torch.manual_seed(0)
    levels = []
    for (vae, unet, config), voxels in zip(networks, shape, strict=True):
        refiner = Refiner(config)
        torch.nn.init.constant_(refiner.prior, CERTAIN)
        levels.append(Level(TeacherForcedVAE(vae, voxels.grid.to(device)), UNet(unet), refiner))
    return XCubePipeline(levels).to(device)


def measured(pipeline: XCubePipeline, steps: int) -> tuple[Sample, Meter]:
    """Sample one shape with guidance, and measure the parts."""
    meter = Meter(pipeline.device)
    for number, level in enumerate(pipeline.levels):
        assert level.refiner is not None
        for name, module in (("denoise", level.denoiser), ("decode", level.vae.decoder), ("refine", level.refiner)):
            meter.watch(f"{name} {number}", module)
    options = SampleOptions.official_defaults(category=0, steps=steps, guidance=2.0, quiet=True)
    (sample,) = pipeline.sample(1, options)
    meter.turn(BETWEEN)
    return sample, meter


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Measure memory and time of sampling a cascade with networks of the official size."
    parser = argparse.ArgumentParser("python -m bench.cascade", description=about)
    add = parser.add_argument
    add("mesh", help="mesh file, which is scaled to the box")
    add(
        "--preset",
        default="shapenet-car",
        choices=cascade_presets(),
        help="preset of the networks (default: shapenet-car)",
    )
    add("--steps", type=int, default=2, help="sampler steps per level, of two calls each (default: 2)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="device (default: cpu)")
    add("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. The exit status is 1 if the memory exceeds the target."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    networks = configs(options.preset)
    shape = levels_of(options.mesh, [vae for vae, _, _ in networks])
    pipeline = pipeline_of(networks, shape, torch.device(options.device))
    sample, meter = measured(pipeline, options.steps)
    report(pipeline, sample, shape)
    most = describe(meter) / 2**30
    met = most <= TARGET
    print(f"peak memory {most:.2f} GiB, target {TARGET} GiB: {'met' if met else 'MISSED'}")
    return int(not met)


def report(pipeline: XCubePipeline, sample: Sample, shape: Sequence[Voxels]) -> None:
    """Print a row per level: voxels of the sample and of the shape, and millions of parameters."""
    print(f"{'level':>12}{'resolution':>12}{'voxels':>11}{'true':>11}{'vae':>10}{'denoiser':>10}{'refiner':>10}")
    for number, (level, made, real) in enumerate(zip(pipeline.levels, sample.levels, shape, strict=True)):
        counts = [sum(p.numel() for p in model.parameters()) / 1e6 for model in level.networks.values()]
        millions = "".join(f"{count:>9.1f}M" for count in counts)
        print(f"{number:>12}{pipeline.resolutions[number]:>12}{made.num_voxels:>11,}{real.num_voxels:>11,}{millions}")
    weights = [p for level in pipeline.levels for model in level.networks.values() for p in model.parameters()]
    print(f"{sum(p.nbytes for p in weights) / 2**30:.2f} GiB of weights\n")


def describe(meter: Meter) -> int:
    """Print a row per part, and one for the total time between them. Returns the maximum memory in bytes."""
    print(f"{'part':>12}{'calls':>7}{'rows':>11}{'seconds/call':>16}{'peak GiB':>10}")
    between = meter.parts.pop(BETWEEN)
    for name, part in meter.parts.items():
        seconds = statistics.median(part.seconds)
        print(f"{name:>12}{len(part.seconds):>7}{part.rows:>11,}{seconds:>16.2f}{part.peak / 2**30:>10.2f}")
    print(f"{BETWEEN:>12}{'':>18}{sum(between.seconds):>16.2f}{between.peak / 2**30:>10.2f}")
    return max(part.peak for part in (between, *meter.parts.values()))


if __name__ == "__main__":
    sys.exit(main())
