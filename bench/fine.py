"""One training step of the released fine VAE of ShapeNet on a real shape: `python -m bench.fine bunny.obj`.

A bench of its own, because what counts is the peak of the whole process, which `make bench` shares among its cases.
Weights are random, so the truth guides what the decoder goes on with, as in a network that has learned.
"""

import argparse
import resource
import sys
import time

import torch

from sparsevox.io import load_mesh
from xcube.data.hierarchy import as_box, build_hierarchy
from xcube.networks.configs import VAEConfig
from xcube.networks.losses import LossConfig, vae_losses
from xcube.networks.vae import VAE

EDGE = 1.28  # of the box of ShapeNet


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser("python -m bench.fine", description="Measure a training step on a mesh.")
    add = parser.add_argument
    add("mesh", help="any file that trimesh reads; it is scaled to the box")
    add("--resolution", type=int, default=512, help="voxels along the box (default: 512)")
    add("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="where to run (default: cpu)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
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
    print(f"{forward:.1f} s forward, {seconds:.1f} s in all, {voxels.num_voxels / seconds:,.0f} voxels/s")
    print(f"peak of {peak(options.device) / 2**30:.2f} GiB")
    return 0


def peak(device: str) -> int:
    """Bytes: of the process, or of torch on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
