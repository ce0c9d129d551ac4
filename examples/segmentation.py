"""Semantic segmentation of procedural street scenes with a MinkUNet: trains in a minute on a CPU.

    python examples/segmentation.py --width 0.5 --seconds 60 --out demo

The network is the MinkUNet of Choy et al. 2019 (arXiv:1904.08755), with the number of channels that LiDAR papers use,
scaled by `--width`. Requires `pip install 'sparsevox[viz]'`.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from scenes import CLASSES, PALETTE, batch_of, street, voxel_labels
from torch import Tensor, nn
from training import train

import sparsevox as sv
from sparsevox.viz import render_row

CHANNELS = (32, 32, 64, 128, 256, 256, 128, 96, 96)
VOXEL = 0.25  # meters


def conv(channels: int, out: int, kernel_size: int = 3, stride: int = 1) -> sv.nn.Sequential:
    """Chain a convolution, batch norm and ReLU."""
    layer = sv.nn.Conv3d(channels, out, kernel_size, stride, bias=False)
    return sv.nn.Sequential(layer, sv.nn.BatchNorm(out), nn.ReLU())


class Residual(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.inner = sv.nn.Sequential(conv(channels, out), sv.nn.Conv3d(out, out, 3, bias=False), sv.nn.BatchNorm(out))
        self.shortcut = nn.Identity() if channels == out else sv.nn.Linear(channels, out, bias=False)

    def forward(self, x: sv.SparseTensor) -> sv.SparseTensor:
        """Map features [N, channels] to [N, out] on the same voxels."""
        return (self.inner(x) + self.shortcut(x)).map(torch.relu)


class MinkUNet(nn.Module):
    """U-Net of four resolutions below the input, with skip connections and two residual blocks per resolution.

    Args:
        in_channels: Number of input channels.
        classes: Number of classes, the number of logits per voxel.
        width: Factor on the number of channels, usually 0.5 or 1.0.
    """

    def __init__(self, in_channels: int, classes: int, width: float = 1.0) -> None:
        super().__init__()
        c = [int(width * channels) for channels in CHANNELS]
        self.stem = sv.nn.Sequential(conv(in_channels, c[0]), conv(c[0], c[0]))
        self.down, self.encode, self.up, self.decode = (nn.ModuleList() for _ in range(4))
        for n in range(4):
            self.down.append(conv(c[n], c[n], 2, stride=2))
            self.encode.append(sv.nn.Sequential(Residual(c[n], c[n + 1]), Residual(c[n + 1], c[n + 1])))
            self.up.append(sv.nn.ConvTranspose3d(c[n + 4], c[n + 5], 2, stride=2))
            both = c[n + 5] + c[3 - n]
            self.decode.append(sv.nn.Sequential(Residual(both, c[n + 5]), Residual(c[n + 5], c[n + 5])))
        self.head = sv.nn.Linear(c[8], classes)

    def forward(self, x: sv.SparseTensor) -> sv.SparseTensor:
        """Compute logits [N, classes] on the voxels of the input."""
        skips = [self.stem(x)]
        for down, encode in zip(self.down, self.encode, strict=True):
            skips.append(encode(down(skips[-1])))
        x = skips.pop()
        for up, decode in zip(self.up, self.decode, strict=True):
            skip = skips.pop()
            x = decode(sv.cat([up(x, grid=skip.grid), skip]))
        return self.head(x)


def scene(seeds: list[int]) -> tuple[sv.SparseTensor, Tensor]:
    """Generate a batch of streets with point positions as features [N, 4], and the class of every voxel [N]."""
    clouds = [street(seed) for seed in seeds]
    points, batch = batch_of([cloud for cloud, _ in clouds])
    inside = points / VOXEL - torch.floor(points / VOXEL)
    feats = torch.cat([inside, points[:, 2:]], 1)
    x = sv.SparseTensor.from_points(points, feats, batch, voxel_size=VOXEL, lower=0.0)
    items = zip(x.grid, clouds, strict=True)
    return x, torch.cat([voxel_labels(grid, cloud, classes) for grid, (cloud, classes) in items])


def mean_iou(found: Tensor, truth: Tensor) -> tuple[float, list[float]]:
    """Compute the mean intersection over union, and that of each class."""
    each = []
    for label in range(len(CLASSES)):
        both, either = (found == label) & (truth == label), (found == label) | (truth == label)
        each.append(float(both.sum() / either.sum().clamp(min=1)))
    return sum(each) / len(each), each


def step_loss(model: nn.Module, step: int) -> Tensor:
    """Compute the loss on two new streets."""
    x, labels = scene([2 * step, 2 * step + 1])
    return nn.functional.cross_entropy(model(x).feats, labels)


def main() -> None:
    """Train, evaluate on held-out streets, and draw one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=float, default=0.5, help="factor on the number of channels (default: 0.5)")
    parser.add_argument("--seconds", type=float, default=60, help="training time in seconds (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture (default: demo)")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = MinkUNet(4, len(CLASSES), options.width)
    print(f"MinkUNet, width {options.width}: {sum(p.numel() for p in model.parameters()):,} parameters")
    steps = train(model, partial(step_loss, model), options.seconds, rate=2e-3)
    model.eval()
    with torch.no_grad():
        x, truth = scene([1_000_000 + n for n in range(8)])
        found = model(x).feats.argmax(1)
    mean, each = mean_iou(found, truth)
    print(f"after {steps} steps, mIoU on 8 held-out streets: {mean:.3f}")
    print("  " + "  ".join(f"{name} {value:.2f}" for name, value in zip(CLASSES, each, strict=True)))
    options.out.mkdir(parents=True, exist_ok=True)
    count = x.grid[0].num_voxels
    colors = [PALETTE[labels[:count]] for labels in (truth, found)]
    render_row(
        *([x.grid[0]] * 2, options.out / "segmentation.png"),
        titles=["ground truth", "prediction"],
        colors=colors,
        elevation=40,
    )
    print(f"wrote {options.out / 'segmentation.png'}")


if __name__ == "__main__":
    main()
