"""A training step of the official fine VAE of ShapeNet on a real shape: `python -m bench.official_vae bunny.obj`.

The weights are random, so the decoder keeps the voxels of the ground truth, as if it were trained. This is a separate
command, because it measures the peak memory of the whole process, which `make bench` shares among its cases.
"""

import argparse
import sys
import time

import torch

from bench.harness import process_peak
from sparsevox.io import load_mesh
from xcube.data.hierarchy import as_box, build_hierarchy
from xcube.networks.configs import VAEConfig
from xcube.networks.losses import LossConfig, vae_losses
from xcube.networks.vae import VAE

EDGE = 1.28  # edge of the box of ShapeNet


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Measure a training step of the official fine VAE on a mesh."
    parser = argparse.ArgumentParser("python -m bench.official_vae", description=about)
    add = parser.add_argument
    add("mesh", help="mesh file, which is scaled to the box")
    add("--resolution", type=int, default=512, help="voxels along the box (default: 512)")
    add("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="device (default: cpu)")
    add("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    box = as_box((options.resolution // 4, options.resolution), EDGE)
    voxels = build_hierarchy(load_mesh(options.mesh), box, samples=100_000, outside="rescale")[-1].to(options.device)
    config = VAEConfig.official(
        voxel_size=box.voxel_size(-1),
        channels=(32, 64, 128),
        latent_channels=8,
        keep="union",
        keep_ratio=0.0,
        checkpointing=options.checkpointing,
    )
    net = VAE(config).to(options.device).train()
    start = time.perf_counter()
    posterior, decoded = net(voxels)
    loss = vae_losses(net, voxels, posterior, decoded, LossConfig()).total
    forward = time.perf_counter() - start
    loss.backward()
    seconds = time.perf_counter() - start
    candidates = sum(decision.candidates.num_voxels for decision in decoded.structure)
    print(f"{voxels.num_voxels:,} voxels, {candidates:,} candidates, loss {loss.item():.2f}")
    print(f"{forward:.1f} s forward, {seconds:.1f} s in total, {voxels.num_voxels / seconds:,.0f} voxels/s")
    print(f"peak memory {process_peak(options.device) / 2**30:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
