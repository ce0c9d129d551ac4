"""Datasets read for training."""

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import sparsevox as sv
from sparsevox.data import VoxelBudgetSampler
from xcube.data import Box, ShapeFolder, Source, build

BOX = Box((4, 8, 16))


def rod(number):
    """As long as its number, with the number as label."""
    grid = sv.Grid.full((-1, -1, 0), (0, 0, number), voxel_size=1 / 16, origin=1 / 32)
    return sv.Voxels(grid, {"label": torch.full((number,), number), "normal": torch.eye(3)[torch.arange(number) % 3]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("rods")
    sources = [
        Source(f"rods/{number}", partial(rod, number), split="train" if number < 4 else "val") for number in range(1, 6)
    ]
    assert len(build(sources, out, BOX, attributes=("label", "normal")).built) == 5
    return out


def test_items_are_a_level_or_several(folder):
    shapes = ShapeFolder(folder)
    assert len(shapes) == 3
    assert [entry.name for entry in shapes.entries] == ["rods/1", "rods/2", "rods/3"]
    assert shapes.card.box == BOX
    item = shapes[2]
    assert isinstance(item, sv.Voxels)
    assert (item.num_voxels, item.grid.voxel_size[0]) == (3, 1 / 16)
    assert item.attributes["label"].tolist() == [3, 3, 3]
    assert item.attributes["normal"].dtype == torch.float32
    assert len(ShapeFolder(folder, None)) == 5
    assert len(ShapeFolder(folder, "val")) == 2
    several = ShapeFolder(folder, level=(0, 2))[0]
    assert [level.grid.voxel_size[0] for level in several] == [1 / 4, 1 / 16]
    assert [level.grid.voxel_size[0] for level in ShapeFolder(folder, level=[-2])[0]] == [1 / 8]


@pytest.mark.parametrize("level", [0, 1, 2, -1, (0, 1, 2), (2, 0)])
def test_sizes_are_those_of_the_items(folder, level):
    shapes: Any = ShapeFolder(folder, None, level=level)
    items = [shapes[n] for n in range(len(shapes))]
    assert shapes.sizes == [sum(v.num_voxels for v in (i if isinstance(i, list) else [i])) for i in items]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_budget(folder, workers):
    shapes = ShapeFolder(folder, None)
    sampler = VoxelBudgetSampler(shapes.sizes, budget=6, seed=2)
    loader = DataLoader(
        shapes, batch_sampler=sampler, collate_fn=sv.collate, num_workers=workers, multiprocessing_context=None
    )
    batches = list(loader)
    assert len(batches) == len(sampler) < 5
    assert all(isinstance(batch, sv.Voxels) and batch.num_voxels <= 6 for batch in batches)
    labels = torch.cat([batch.attributes["label"] for batch in batches])
    assert sorted(labels.tolist()) == [n for n in range(1, 6) for _ in range(n)]


def test_batches_of_several_levels(folder):
    loader = DataLoader(ShapeFolder(folder, None, level=(0, 2)), batch_size=5, collate_fn=sv.collate)
    ((coarse, fine),) = loader
    assert (coarse.batch_size, fine.batch_size, fine.num_voxels) == (5, 5, 15)


def test_it_goes_to_other_processes(folder):
    shapes = ShapeFolder(folder, "val", level=0)
    again = pickle.loads(pickle.dumps(shapes))
    assert again.sizes == shapes.sizes
    assert again[1].grid.same_voxels(shapes[1].grid)
    assert repr(again) == f"ShapeFolder({folder}, 2 shapes, levels: 4, {sum(shapes.sizes)} voxels)"


def test_errors(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"card.json does not exist"):
        ShapeFolder(tmp_path)
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'val'\], got 'test' for"):
        ShapeFolder(folder, "test")
    level: Any
    for level in (3, -4, (0, 3), ()):
        with pytest.raises(IndexError, match=r"level must be an index of the levels \(4, 8, 16\), got"):
            ShapeFolder(folder, level=level)
    with pytest.raises(TypeError, match=r"level must be an int, got 1.5"):
        ShapeFolder(folder, level=(0, 1.5))  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        ShapeFolder(folder)[3]


def test_what_is_missing_or_damaged_is_named(tmp_path):
    build([Source("a", lambda: rod(3), split="train")], tmp_path, BOX, attributes=("label",))
    shapes = ShapeFolder(tmp_path)
    path = tmp_path / "shapes" / "a" / "16.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"shapes/a/16.npz: "):
        shapes[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shapes/a/16.npz"):
        shapes[0]
    card = tmp_path / "card.json"
    card.write_text(card.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(ValueError, match=r"card.json: must be 'xcube shapes' of version 1, got .* version 9"):
        ShapeFolder(tmp_path)
