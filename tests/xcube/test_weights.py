"""The weights in the package: they load, they are small, and they keep what they promise."""

from pathlib import Path

import pytest
import torch

import xcube
from sparsevox import Voxels
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.networks.losses import voxel_iou
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.vae import VAE
from xcube.pipeline.reconstruct import box_of, reconstruct
from xcube.procedural.shapes import FAMILIES, shape_voxels

pytest.importorskip("scipy", reason="finds the inside")

WEIGHTS = Path(xcube.__file__).parent / "weights"
NAMES = sorted(path.parent.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("config.json"))


def test_all_are_small() -> None:
    assert {"shapes/vae-0", "shapes/vae-1"} <= set(NAMES)
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) < 14e6


@pytest.mark.parametrize("level", [0, 1])
def test_vaes_reconstruct_shapes_that_they_never_saw(level: int) -> None:
    folder = WEIGHTS / "shapes" / f"vae-{level}"
    vae = from_pretrained(folder, VAE)
    assert box_of(vae, read_config(folder)["metadata"]) == (Box((16, 64)), level)
    box = Box((16, 64))
    pyramids = [build_hierarchy(shape_voxels(f"{name}-900001", box), box, fill=True) for name in FAMILIES]
    shapes = Voxels.stack([levels[level] for levels in pyramids])
    with torch.no_grad():
        found = reconstruct(shapes, vae).decoded
    assert float(voxel_iou(found.grid, shapes.grid).min()) > 0.9
    assert float(voxel_iou(found.grid, shapes.grid).mean()) > 0.96
