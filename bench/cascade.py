"""What it takes to sample with networks of the released size, 128^3 -> 512^3: `python -m bench.cascade spot.obj`.

A bench of its own, because what counts is the peak of the whole process, in which all networks lie. `XCubePipeline`
samples one shape, with guidance at both levels. Weights are random, so a real shape leads what the decoders go on with,
as in a cascade that has learned: the fine denoiser works on the grid of that shape. M latent voxels, N candidates.
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

from bench.fine import peak
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
from xcube.training.jobs import read_preset, whole_presets

WANTED = 12  # GiB, at most
BETWEEN = "between"  # the name of what is no part
CERTAIN = 1e6  # logit of a refinement network that leaves voxels as they are, whatever its random weights say

# ShapeNet's denoisers, for presets without them.
COARSE = UNetConfig.official(True, latent_channels=16, channels=192, multipliers=(1, 2, 4, 4), attention=(1, 2, 4))
FINE = UNetConfig.official(
    False, latent_channels=8, channels=128, multipliers=(1, 2, 2, 4), attention=(4, 8), position="ijk", normal=True
)
RELEASED: dict[str, tuple[UNetConfig, UNetConfig]] = {
    "shapenet-car": (COARSE, FINE),
    "shapenet-chair": (COARSE, replace(FINE, channels=64)),
    "shapenet-plane": (COARSE, FINE),
}

Networks = tuple[VAEConfig, UNetConfig, RefinerConfig]  # of a level


def guided(config: VAEConfig) -> VAEConfig:
    """The same network, whose decoder goes on with the truth where it is told."""
    return replace(config, keep="union", keep_ratio=0.0)


class Led(VAE):
    """A VAE that decodes a shape that is known, as one that has learned would from the latents of that shape."""

    def __init__(self, config: VAEConfig, shape: Grid) -> None:
        super().__init__(guided(config))
        self.tree = self.truth(shape)

    def decode(self, latents: SparseTensor, truth: Grid | None = None) -> Decoded:
        """The shape. What the decoder goes on with are those of its candidates that are true."""
        return self.decoder(latents, self.tree)


@dataclass
class Cost:
    """The calls of a module, or of what is between such calls.

    seconds: Of each call.
    peak: Bytes, the largest.
    rows: Voxels that it computes on, the most.
    """

    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    rows: int = 0


class Meter:
    """Seconds and memory of parts of a program.

    Memory is that of the process, or what torch holds on a GPU. Where the kernel cannot set its high-water mark back
    (it is Linux that can), the peak of a part is that of all before it, too.

    parts: By name.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict[str, Cost]()
        self._peak()
        self._name, self._start = BETWEEN, time.perf_counter()

    def watch(self, name: str, module: torch.nn.Module) -> None:
        """Make a part of the calls of a module, which returns something with voxels or candidates."""

        def end(_module: torch.nn.Module, _inputs: Any, result: Any) -> None:
            self.turn(BETWEEN)
            self.parts[name].rows = max(self.parts[name].rows, rows_of(result))

        module.register_forward_pre_hook(lambda *_: self.turn(name))
        module.register_forward_hook(end)

    def turn(self, name: str) -> None:
        """All since the last turn belongs to the part that was named there; what comes now belongs to this one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        part = self.parts.setdefault(self._name, Cost())
        part.seconds.append(time.perf_counter() - self._start)
        part.peak = max(part.peak, self._peak())
        self._name, self._start = name, time.perf_counter()

    def _peak(self) -> int:
        """Bytes, since the last look."""
        if self.device.type == "cuda":
            found = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return found
        status = Path("/proc/self/status")
        if not status.exists():
            return peak("cpu")
        mark = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return int(mark.split()[1]) * 1024


def rows_of(result: SparseTensor | Decoded | Refined) -> int:
    """M of latents, N of a decode or a repaired one: of the depth that has most."""
    if isinstance(result, Decoded):
        return max(decided.candidates.num_voxels for decided in result.structure)
    return result.candidates.num_voxels if isinstance(result, Refined) else result.grid.num_voxels


def configs(name: str) -> list[Networks]:
    """The networks of both levels of a preset. Every level has a refinement network, of the size of the finest one's.

    Denoisers are told a category, which costs next to nothing, so that guidance means something.
    """
    parts = {part.name: part.options["model"] for part in read_preset(name)}
    made = []
    for level in range(2):
        vae = parts[f"vae-{level}"]
        unet = parts[f"denoiser-{level}"] if f"denoiser-{level}" in parts else RELEASED[name][level]
        repair = replace(parts["refiner-1"], voxel_size=vae.voxel_sizes[0])
        made.append((vae, replace(unet, categories=1), repair))
    return made


def levels_of(mesh: str, vaes: Sequence[VAEConfig]) -> list[Voxels]:
    """A mesh at the levels of the VAEs, scaled to the box of the first one's latents."""
    return build_hierarchy(load_mesh(mesh), box_around(vaes), samples=100_000, outside="rescale")


def box_around(vaes: Sequence[VAEConfig]) -> Box:
    """The box of the latents of the first of the VAEs, with a level for each."""
    assert vaes[0].dense_neck is not None
    edge = 2 * vaes[0].dense_neck[0] * latent_voxel_size(vaes[0])[0]
    return as_box([round(edge / vae.voxel_sizes[0]) for vae in vaes], edge)


def pipeline_of(networks: Sequence[Networks], shape: Sequence[Voxels], device: torch.device) -> XCubePipeline:
    """All networks, with random weights, led by a shape at each level."""
    torch.manual_seed(0)
    levels = []
    for (vae, unet, repair), voxels in zip(networks, shape, strict=True):
        refiner = Refiner(repair)
        torch.nn.init.constant_(refiner.prior, CERTAIN)
        levels.append(Level(Led(vae, voxels.grid.to(device)), UNet(unet), refiner))
    return XCubePipeline(levels).to(device)


def measured(pipeline: XCubePipeline, steps: int) -> tuple[Sample, Meter]:
    """One shape with guidance, and what its parts took."""
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
    """The options of the command line."""
    about = "Measure memory and time of a cascade with networks of the released size."
    parser = argparse.ArgumentParser("python -m bench.cascade", description=about)
    add = parser.add_argument
    add("mesh", help="any file that trimesh reads; it is scaled to the box")
    choices = sorted({*RELEASED, *whole_presets()})
    add("--preset", default="shapenet-car", choices=choices, help="whose networks (default: shapenet-car)")
    add("--steps", type=int, default=2, help="of the sampler at each level, each two calls (default: 2)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="where to run (default: cpu)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the exit status is 1 if more memory is needed than is wanted."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    networks = configs(options.preset)
    shape = levels_of(options.mesh, [vae for vae, _, _ in networks])
    pipeline = pipeline_of(networks, shape, torch.device(options.device))
    sample, meter = measured(pipeline, options.steps)
    report(pipeline, sample, shape)
    most = describe(meter) / 2**30
    met = most <= WANTED
    print(f"peak of {most:.2f} GiB, of the {WANTED} that are wanted: {'met' if met else 'MISSED'}")
    return int(not met)


def report(pipeline: XCubePipeline, sample: Sample, shape: Sequence[Voxels]) -> None:
    """A row for each level: voxels that were made, those of the shape, and millions of parameters."""
    print(f"{'level':>12}{'resolution':>12}{'voxels':>11}{'true':>11}{'vae':>10}{'denoiser':>10}{'refiner':>10}")
    for number, (level, made, real) in enumerate(zip(pipeline.levels, sample.levels, shape, strict=True)):
        counts = [sum(p.numel() for p in model.parameters()) / 1e6 for model in level.networks.values()]
        millions = "".join(f"{count:>9.1f}M" for count in counts)
        print(f"{number:>12}{pipeline.resolutions[number]:>12}{made.num_voxels:>11,}{real.num_voxels:>11,}{millions}")
    weights = [p for level in pipeline.levels for model in level.networks.values() for p in model.parameters()]
    print(f"{sum(p.nbytes for p in weights) / 2**30:.2f} GiB of weights\n")


def describe(meter: Meter) -> int:
    """A row for each part; returns the largest peak, in bytes. Of what is between parts, all seconds are added."""
    print(f"{'part':>12}{'calls':>7}{'rows':>11}{'seconds a call':>16}{'peak GiB':>10}")
    between = meter.parts.pop(BETWEEN)
    for name, part in meter.parts.items():
        seconds = statistics.median(part.seconds)
        print(f"{name:>12}{len(part.seconds):>7}{part.rows:>11,}{seconds:>16.2f}{part.peak / 2**30:>10.2f}")
    print(f"{BETWEEN:>12}{'':>18}{sum(between.seconds):>16.2f}{between.peak / 2**30:>10.2f}")
    return max(part.peak for part in (between, *meter.parts.values()))


if __name__ == "__main__":
    sys.exit(main())
