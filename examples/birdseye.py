"""Car detection in bird's-eye view, with a sparse encoder as in SECOND and CenterPoint: trains in a minute on a CPU.

    python examples/birdseye.py --seconds 60 --out demo

The encoder halves the resolution three times, with residual blocks in between (as VoxelResBackBone8x of OpenPCDet), and
folds the height into channels. The head is made of `torch.nn.Conv2d`. Requires `pip install 'sparsevox[viz]'`.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from matplotlib import pyplot
from scenes import CLASSES, batch_of, street
from torch import Tensor, nn
from training import train

import sparsevox as sv

VOXEL = (0.2, 0.2, 0.2)  # meters
LOWER, UPPER = (-12.0, -12.0, -0.6), (12.0, 12.0, 7.4)
SIZE = tuple(round((up - low) / edge) for low, up, edge in zip(LOWER, UPPER, VOXEL, strict=True))  # 120 x 120 x 40
CELL = 8  # voxels along an edge of a cell of the map
CELLS = SIZE[0] // CELL  # cells along an edge of the map


class Block(nn.Module):
    """Residual block of two submanifold convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = sv.nn.Sequential(
            *(sv.nn.Conv3d(channels, channels, 3), sv.nn.BatchNorm(channels), nn.ReLU()),
            *(sv.nn.Conv3d(channels, channels, 3), sv.nn.BatchNorm(channels)),
        )

    def forward(self, x: sv.SparseTensor) -> sv.SparseTensor:
        """Apply the block to features [N, C]."""
        return (self.inner(x) + x).map(torch.relu)


def stage(channels: int, out: int, padding: tuple[int, int, int] = (1, 1, 1)) -> sv.nn.Sequential:
    """Downsample with a convolution of stride 2, then apply two residual blocks."""
    down = sv.nn.Conv3d(channels, out, 3, stride=2, padding=padding, bias=False)
    return sv.nn.Sequential(down, sv.nn.BatchNorm(out), nn.ReLU(), Block(out), Block(out))


class Network(nn.Module):
    """Predict a logit per cell of the map from voxels with features [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        stem = (sv.nn.Conv3d(4, 16, 3, bias=False), sv.nn.BatchNorm(16), nn.ReLU(), Block(16), Block(16))
        squeeze = sv.nn.Conv3d(128, 128, (1, 1, 3), stride=(1, 1, 2), padding=0, bias=False)
        self.encoder = sv.nn.Sequential(
            *(*stem, stage(16, 32), stage(32, 64), stage(64, 128, padding=(1, 1, 0))),
            *(squeeze, sv.nn.BatchNorm(128), nn.ReLU()),
        )
        self.head = nn.Sequential(
            *(nn.Conv2d(2 * 128, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 1, 1))
        )

    def forward(self, x: sv.SparseTensor) -> Tensor:
        """Compute logits [B, CELLS, CELLS]."""
        volume = self.encoder(x).dense(0, (CELLS, CELLS, 2))  # [B, 128, CELLS, CELLS, 2]
        return self.head(rearrange(volume, "b c x y z -> b (c z) x y")).squeeze(1)


def batch(seeds: list[int]) -> tuple[sv.SparseTensor, Tensor]:
    """Generate streets, and the cells that hold points of a car: bool [B, CELLS, CELLS]."""
    clouds = [street(seed) for seed in seeds]
    points, index = batch_of([cloud for cloud, _ in clouds])
    classes = torch.cat([labels for _, labels in clouds])
    inside = ((points >= torch.tensor(LOWER)) & (points < torch.tensor(UPPER))).all(1)
    points, index, classes = points[inside], index[inside], classes[inside]
    ijk = torch.floor((points - torch.tensor(LOWER)) / torch.tensor(VOXEL))
    feats = torch.cat([(points - torch.tensor(LOWER)) / torch.tensor(VOXEL) - ijk, points[:, 2:]], 1)
    x = sv.SparseTensor.from_points(points, feats, index, voxel_size=VOXEL, lower=LOWER, batch_size=len(seeds))
    cars = torch.zeros(len(seeds), CELLS, CELLS, dtype=torch.bool)
    car = classes == CLASSES.index("car")
    cell = (ijk[car, :2] // CELL).long().clamp(max=CELLS - 1)
    cars[index[car], cell[:, 0], cell[:, 1]] = True
    return x, cars


def step_loss(model: nn.Module, step: int) -> Tensor:
    """Compute the loss on two new streets."""
    x, cars = batch([2 * step, 2 * step + 1])
    weight = torch.tensor(4.0)  # cars are rare
    return nn.functional.binary_cross_entropy_with_logits(model(x), cars.float(), pos_weight=weight)


def main() -> None:
    """Train, evaluate on held-out streets, and draw two of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="training time in seconds (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture (default: demo)")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Network()
    steps = train(model, partial(step_loss, model), options.seconds, rate=2e-3)
    model.eval()
    with torch.no_grad():
        x, truth = batch([1_000_000 + n for n in range(8)])
        found = model(x) > 0
    right = (found & truth).sum().item()
    precision, recall = right / max(found.sum().item(), 1), right / truth.sum().item()
    print(
        f"after {steps} steps, cells with a car on 8 held-out streets: precision {precision:.2f}, recall {recall:.2f}"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    _, axes = pyplot.subplots(1, 4, figsize=(16, 4.4))
    for column in range(2):
        for axis, cells, title in zip(axes[2 * column :], (truth, found), ("ground truth", "prediction"), strict=False):
            axis.imshow(cells[column].float().t(), origin="lower", cmap="Blues")
            axis.set(title=f"street {column + 1}: {title}", xticks=[], yticks=[])
    pyplot.savefig(options.out / "birdseye.png", dpi=100, bbox_inches="tight")
    print(f"wrote {options.out / 'birdseye.png'}")


if __name__ == "__main__":
    main()
