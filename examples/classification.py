"""Classification of procedural shapes with a small sparse network: trains in under a minute on a CPU.

    python examples/classification.py --seconds 40 --out demo

Requires `pip install 'sparsevox[viz]'`.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from scenes import SHAPES, batch_of, shape
from torch import Tensor, nn
from training import train

import sparsevox as sv
from sparsevox.viz import render_row

VOXEL = 1 / 16


def network(classes: int) -> sv.nn.Sequential:
    """Build a classifier: three downsampling convolutions, global pooling and a linear layer."""
    return sv.nn.Sequential(
        *(sv.nn.Conv3d(1, 16, 3), sv.nn.BatchNorm(16), nn.ReLU()),
        *(sv.nn.Conv3d(16, 32, 2, stride=2), sv.nn.BatchNorm(32), nn.ReLU()),
        *(sv.nn.Conv3d(32, 32, 3), sv.nn.BatchNorm(32), nn.ReLU()),
        *(sv.nn.Conv3d(32, 64, 2, stride=2), sv.nn.BatchNorm(64), nn.ReLU()),
        *(sv.nn.Conv3d(64, 64, 3), sv.nn.BatchNorm(64), nn.ReLU()),
        *(sv.nn.Conv3d(64, 128, 2, stride=2), sv.nn.BatchNorm(128), nn.ReLU()),
        *(sv.nn.GlobalPool("max"), nn.Linear(128, classes)),
    )


def batch(seeds: range) -> tuple[sv.SparseTensor, Tensor]:
    """Generate one shape per seed, as voxels with a constant feature, and the family of each shape, int64 [B]."""
    labels = [seed * 7919 % len(SHAPES) for seed in seeds]
    clouds = [shape(SHAPES[label], seed) for label, seed in zip(labels, seeds, strict=True)]
    points, index = batch_of(clouds)
    x = sv.SparseTensor.from_points(points, torch.ones(len(points), 1), index, voxel_size=VOXEL)
    return x, torch.tensor(labels)


def step_loss(model: nn.Module, step: int, size: int = 16) -> Tensor:
    """Compute the loss on a batch of new shapes."""
    x, labels = batch(range(size * step, size * (step + 1)))
    return nn.functional.cross_entropy(model(x), labels)


def main() -> None:
    """Train, evaluate on held-out shapes, and draw some of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=40, help="training time in seconds (default: 40)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture (default: demo)")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = network(len(SHAPES))
    steps = train(model, partial(step_loss, model), options.seconds, rate=3e-3)
    model.eval()
    with torch.no_grad():
        x, truth = batch(range(1_000_000, 1_000_200))
        found = model(x).argmax(1)
    print(f"after {steps} steps, accuracy on 200 held-out shapes: {(found == truth).float().mean().item():.3f}")
    options.out.mkdir(parents=True, exist_ok=True)
    names = [SHAPES[int(label)] for label in found[:6]]
    render_row(x.grid[:6], options.out / "classification.png", titles=names)
    print(f"wrote {options.out / 'classification.png'}, with the predictions as titles")


if __name__ == "__main__":
    main()
