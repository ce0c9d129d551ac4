"""The fine level alone, from true coarse grids: `python -m bench.fine_level --data procedural --model runs`.

The latent grids are those of held-out shapes, so that nothing depends on the coarse level. Every row of the table is a
way to make the latents: those of the encoder, one call of the denoiser, or many. Each is decoded, and refined if there
is a refiner. No component is removed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import sparsevox as sv
from sparsevox import SparseTensor, Voxels
from sparsevox.io.meshes import describe
from xcube.data.loading import ShapeFolder
from xcube.diffusion.objective import Diffusion, DiffusionConfig, Noise
from xcube.diffusion.samplers import SamplerConfig, sample_latents
from xcube.geometry.components import component_sizes
from xcube.networks.conditions import Conditions
from xcube.networks.decoder import with_unit_normals
from xcube.networks.losses import true_attributes, voxel_iou
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE

HEAD = """\
| latents | refined | IoU | parts | single part | open edges | closed | ms per shape |
|---|---|--:|--:|--:|--:|--:|--:|"""
BATCH = 16  # shapes

# Makes the latents of shapes, given their numbers and a seed.
Latents = Callable[[Voxels, range, int], SparseTensor]


class FineLevel:
    """The networks of the fine level in a folder of training runs."""

    def __init__(self, folder: Path, level: int) -> None:
        self.vae = from_pretrained(folder / f"vae-{level}", VAE)
        self.denoiser, self.refiner = None, None
        self.scale, self.diffusion = 1.0, Diffusion(DiffusionConfig())
        if (folder / f"denoiser-{level}").is_dir():
            self.denoiser = from_pretrained(folder / f"denoiser-{level}", UNet)
            metadata = read_config(folder / f"denoiser-{level}")["metadata"]
            self.scale = metadata["latent_scale"]
            self.diffusion = Diffusion(DiffusionConfig.from_dict(metadata["diffusion"]))
        if (folder / f"refiner-{level}").is_dir():
            self.refiner = from_pretrained(folder / f"refiner-{level}", Refiner)

    def encoded(self, shapes: Voxels, numbers: range, seed: int) -> SparseTensor:
        """The means of the posterior: the upper bound."""
        posterior = self.vae.encode(shapes)
        return SparseTensor(posterior.grid, posterior.mean)

    def sampled(self, sampler: SamplerConfig) -> Latents:
        """A function that samples latents with the denoiser."""
        denoiser = self.denoiser
        assert denoiser is not None

        def sample(shapes: Voxels, numbers: range, seed: int) -> SparseTensor:
            grid = self.vae.latent_grid(shapes.grid)
            wanted = {name for name in ("normal", "fill", "label") if name in denoiser.config.conditions}
            known = Voxels(grid, true_attributes(shapes, grid, wanted))
            latents = sample_latents(
                denoiser,
                grid,
                denoiser.config.latent_channels,
                Noise(seed, numbers, 1),
                diffusion=self.diffusion,
                sampler=sampler,
                conditions=Conditions.from_voxels(known, denoiser.config),
            )
            return latents.map(lambda z: z / self.scale)

        return sample

    def ways(self, steps: Sequence[int]) -> dict[str, Latents]:
        """The ways to make latents, by name."""
        found: dict[str, Latents] = {"encoder, means": self.encoded}
        if self.denoiser is None:
            return found
        for count in steps:
            if self.diffusion.is_flow:
                found[f"flow, {count} calls"] = self.sampled(SamplerConfig(sampler="flow", steps=count))
            else:
                ddim = SamplerConfig(sampler="ddim", steps=count, spacing="trailing")
                found[f"ddim, {count} calls"] = self.sampled(ddim)
        if not self.diffusion.is_flow:
            found["ddpm, 50 calls"] = self.sampled(SamplerConfig(sampler="ddpm", steps=50))
        return found


def measure(
    level: FineLevel, latents: Latents, shapes: Sequence[Voxels], seeds: Sequence[int]
) -> list[list[list[float]]]:
    """IoU, parts, open edges and seconds of all shapes: four lists for the decoded ones, and for the refined ones."""
    found: list[list[tuple[float, float, float, float]]] = [[], []]
    for seed in seeds:
        for start in range(0, len(shapes), BATCH):
            batch = Voxels.stack(list(shapes[start : start + BATCH]))
            numbers = range(start, start + batch.batch_size)
            begin = time.perf_counter()
            made = latents(batch, numbers, seed)
            decoded = with_unit_normals(level.vae.decode(made, generated=latents != level.encoded).voxels)
            results = [decoded]
            seconds = [time.perf_counter() - begin]
            if level.refiner is not None:
                results.append(with_unit_normals(level.refiner.refine(decoded)))
                seconds.append(time.perf_counter() - begin)
            for number, (result, spent) in enumerate(zip(results, seconds, strict=True)):
                iou = voxel_iou(result.grid, batch.grid).tolist()
                for each, overlap in zip(result.unbind(), iou, strict=True):
                    edges = describe(sv.io.to_mesh(each, "nets")).boundary_edges if each.num_voxels else 0
                    parts = len(component_sizes(each.grid))
                    found[number].append((overlap, parts, edges, spent / batch.batch_size))
    return [[list(column) for column in zip(*rows, strict=True)] for rows in found if rows]


def describe_row(name: str, refined: bool, columns: Sequence[Sequence[float]]) -> str:
    """One row of the table."""
    iou, parts, edges, seconds = columns
    single = statistics.fmean(count == 1 for count in parts)
    # A shape without voxels is not closed, although it has no open edges.
    closed = statistics.fmean(count > 0 and not open_edges for count, open_edges in zip(parts, edges, strict=True))
    return (
        f"| {name} | {'yes' if refined else 'no'} | {statistics.fmean(iou):.3f} | {statistics.fmean(parts):.2f} | "
        f"{100 * single:.0f} % | {statistics.fmean(edges):.1f} | {100 * closed:.0f} % | "
        f"{1e3 * statistics.fmean(seconds):.0f} |"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Measure the fine level of a cascade alone, from the true coarse grids of held-out shapes."
    parser = argparse.ArgumentParser("python -m bench.fine_level", description=about)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of a dataset")
    add("--model", type=Path, required=True, help="folder of training runs")
    add("--level", type=int, default=1, help="level of the cascade (default: 1)")
    add("--split", default="test", help="split of the dataset (default: test)")
    add("--shapes", type=int, default=64, help="number of shapes (default: 64)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the noise (default: 0 1 2)")
    add("--steps", type=int, nargs="+", default=[1, 2, 4, 50], help="numbers of calls to compare (default: 1 2 4 50)")
    add("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    level = FineLevel(options.model, options.level)
    folder = ShapeFolder[Voxels](options.data, options.split, level=options.level)
    chosen = torch.linspace(0, len(folder) - 1, min(options.shapes, len(folder))).round().long().tolist()
    shapes = [folder[item] for item in chosen]
    print(HEAD, flush=True)
    for name, latents in level.ways(options.steps).items():
        seeds = options.seeds[:1] if name.startswith("encoder") else options.seeds
        for number, columns in enumerate(measure(level, latents, shapes, seeds)):
            print(describe_row(name, number > 0, columns), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
