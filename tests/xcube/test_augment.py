"""Augmentation: exact mirror images and turns, scaled shapes without holes, against NumPy on dense volumes."""

import math
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid, Voxels
from xcube.data import Box, ShapeFolder, build, build_hierarchy
from xcube.data.augment import Augment, AugmentedShapes, mirror_image, scaled, turned
from xcube.data.hierarchy import with_fill
from xcube.procedural.shapes import procedural_sources, shape_voxels
from xcube.training.config import TrainConfig
from xcube.training.data import training_batches
from xcube.training.latents import SHAPE_INDEX, LatentDataset

BOX = Box((4, 16))
HALF = 6  # voxels from the center to the margin of the box
Cells = set[tuple[int, ...]]

cells = st.sets(st.tuples(*[st.integers(-HALF, HALF - 1)] * 3), min_size=1, max_size=40)
factors = st.tuples(*[st.floats(0.5, 1.0)] * 3)


def voxels_of(places: Cells, seed: int = 0) -> Voxels:
    """Voxels of the finest level with random normals, colors and labels."""
    size = BOX.voxel_size(-1)
    grid = Grid.from_coords(torch.tensor(sorted(places)), batch_size=1, voxel_size=size, origin=size / 2)
    generator = torch.Generator().manual_seed(seed)
    normal, color = torch.randn(len(places), 3, generator=generator), torch.rand(len(places), 3, generator=generator)
    label = torch.randint(5, (len(places),), generator=generator)
    return Voxels(grid, {"normal": torch.nn.functional.normalize(normal), "color": color, "label": label})


def dense(voxels: Voxels, half: int) -> dict[str, np.ndarray]:
    """Dense volumes of occupancy and attributes, whose middle is the center of the box."""
    place = tuple((voxels.grid.ijk.numpy() + half).T)
    volumes = {"occupied": np.zeros((2 * half,) * 3, bool)}
    volumes["occupied"][place] = True
    for name, value in voxels.attributes.items():
        volumes[name] = np.zeros((*(2 * half,) * 3, *value.shape[1:]), value.numpy().dtype)
        volumes[name][place] = value.numpy()
    return volumes


def equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


def flipped(volumes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    made = {name: np.flip(volume, 1) for name, volume in volumes.items()}
    return made | {"normal": made["normal"] * np.array([1, -1, 1], np.float32)}


def rotated(volumes: dict[str, np.ndarray], quarters: int) -> dict[str, np.ndarray]:
    made = {name: np.rot90(volume, quarters, (0, 1)) for name, volume in volumes.items()}
    angle = quarters * math.pi / 2
    c, s = round(math.cos(angle)), round(math.sin(angle))
    return made | {"normal": made["normal"] @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32).T}


# --- Mirror images and turns


@given(cells, st.integers(0, 9))
def test_a_mirror_image_is_exact(places: Cells, seed: int) -> None:
    voxels = voxels_of(places, seed)
    assert equal(dense(mirror_image(voxels), HALF), flipped(dense(voxels, HALF)))
    assert equal(dense(mirror_image(mirror_image(voxels)), HALF), dense(voxels, HALF))


@given(cells, st.integers(-3, 8))
def test_a_turn_is_exact(places: Cells, quarters: int) -> None:
    voxels = voxels_of(places)
    assert equal(dense(turned(voxels, quarters), HALF), rotated(dense(voxels, HALF), quarters))


@given(cells)
def test_changes_commute_with_the_hierarchy(places: Cells) -> None:
    """Early dilation of a mirror image is the mirror image of the early dilation."""
    fine = voxels_of(places)
    levels = build_hierarchy(fine, BOX)
    for change in (mirror_image, turned):
        for level, of_changed in zip(levels, build_hierarchy(change(fine), BOX), strict=True):
            assert change(level).grid.same_voxels(of_changed.grid)
            assert change(level).grid.origin == of_changed.grid.origin


def test_attributes_of_changed_shapes_are_those_of_coarse_levels() -> None:
    box = Box((8, 32))
    fine = shape_voxels("chair-000003", box)
    for change in (mirror_image, turned):
        levels, others = build_hierarchy(fine, box), build_hierarchy(change(fine), box)
        for level, other in zip(levels, others, strict=True):
            near = (change(level).attributes["normal"] - other.attributes["normal"]).abs().amax(1) < 1e-4
            assert float(near.float().mean()) > 0.99  # apart from normals that cancel each other


# --- Scaled shapes


def moved(places: Cells, factor: tuple[float, ...]) -> Cells:
    return {tuple(math.floor(f * (c + 0.5)) for f, c in zip(factor, cell, strict=True)) for cell in places}


def enclosing(places: Cells, ratio: int) -> Cells:
    """The coarse voxels whose centers enclose those of the fine voxels."""
    found: Cells = set()
    for cell in places:
        first = [math.floor((c + 0.5) / ratio - 0.5) for c in cell]
        found |= {tuple(f + o for f, o in zip(first, other, strict=True)) for other in product((0, 1), repeat=3)}
    return found


@given(cells, factors)
def test_scaled_voxels_hold_the_scaled_centers(places: Cells, factor: tuple[float, float, float]) -> None:
    coarse, fine = scaled(voxels_of(places), BOX, factor)
    expected = moved(places, factor)
    assert {tuple(cell) for cell in fine.grid.ijk.tolist()} == expected
    assert {tuple(cell) for cell in coarse.grid.ijk.tolist()} == enclosing(expected, 4)
    assert set(fine.attributes) == {"normal", "color", "label"}


@given(cells, factors, st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda n: max(map(abs, n)) > 0.1))
def test_normals_take_the_inverse_factors(places: Cells, factor: Any, normal: Any) -> None:
    voxels = voxels_of(places)
    constant = torch.tensor(normal, dtype=torch.float32).expand(len(places), 3)
    given_normals = torch.nn.functional.normalize(constant, dim=1)
    voxels = voxels.with_attributes(normal=given_normals, label=torch.full((len(places),), 3))
    expected = np.array(normal) / np.array(factor)
    expected /= np.linalg.norm(expected)
    for level in scaled(voxels, BOX, factor):
        found = level.attributes["normal"].numpy()
        length = np.linalg.norm(found, axis=1)
        near = length > 0.99  # coarse voxels far from all centers have shorter ones
        assert near.all() or level.grid.voxel_size[0] > BOX.voxel_size(-1)
        assert np.allclose(found[near], expected, atol=0.01)
        assert bool((level.attributes["label"] == 3).all())


@given(cells)
def test_a_factor_of_1_changes_no_voxel(places: Cells) -> None:
    voxels = voxels_of(places)
    for level, other in zip(scaled(voxels, BOX, (1.0, 1.0, 1.0)), build_hierarchy(voxels, BOX), strict=True):
        assert level.grid.same_voxels(other.grid)
        for name, value in level.attributes.items():
            torch.testing.assert_close(value, other.attributes[name])


def test_solid_fractions_are_computed_again() -> None:
    pytest.importorskip("scipy")
    block, inner = set(product(range(-6, 4), repeat=3)), set(product(range(-5, 3), repeat=3))
    voxels = voxels_of(block - inner)  # a closed shell
    levels = scaled(voxels.with_attributes(fill=torch.ones(voxels.num_voxels)), BOX, (0.9, 1.0, 0.8))
    for level, plain in zip(levels, scaled(voxels, BOX, (0.9, 1.0, 0.8)), strict=True):
        assert "fill" not in plain.attributes
        assert level.grid.same_voxels(plain.grid)
    expected = with_fill([level.with_attributes(fill=torch.zeros(level.num_voxels)) for level in levels])
    for level, other in zip(levels, expected, strict=True):
        assert torch.equal(level.attributes["fill"], other.attributes["fill"])
    assert bool((levels[-1].attributes["fill"] == 1).all())
    assert float(levels[0].attributes["fill"].max()) == 1


def enclosed(volume: np.ndarray) -> np.ndarray:
    ndimage = pytest.importorskip("scipy.ndimage")
    return np.asarray(ndimage.binary_fill_holes(volume)) & ~volume


def check_closed(fine: Voxels, small: Voxels, factor: tuple[float, ...], half: int) -> tuple[int, int]:
    """Voxels of the scaled shape that come from enclosed ones alone are in it or enclosed. Return their numbers."""
    inside, walls = enclosed(dense(fine, half)["occupied"]), dense(small, half)["occupied"]
    target = [np.floor(f * (np.arange(-half, half) + 0.5)).astype(int) + half for f in factor]
    from_outside = np.zeros_like(walls)
    for i, j, k in np.argwhere(~inside):
        from_outside[target[0][i], target[1][j], target[2][k]] = True
    reached = np.zeros_like(walls)
    reached[np.ix_(*(np.unique(axis) for axis in target))] = True
    within = reached & ~from_outside
    assert not (within & ~walls & ~enclosed(walls)).any()
    return int(inside.sum()), int(within.sum())


@given(st.sets(st.tuples(*[st.integers(-3, 2)] * 3), max_size=60), factors)
def test_empty_space_that_is_enclosed_stays_enclosed(open_cells: Cells, factor: Any) -> None:
    """Shells with arbitrary insides: the surface of a cube, and what is left of it after removal of random voxels."""
    places = set(product(range(-3, 3), repeat=3)) - {c for c in open_cells if max(abs(x + 0.5) for x in c) < 2}
    small = scaled(voxels_of(places), BOX, factor)[-1]
    check_closed(voxels_of(places), small, factor, 8)


@pytest.mark.parametrize("name", ["chair-000003", "table-000001", "sofa-000002", "lamp-000004", "airplane-000001"])
def test_closed_shells_of_procedural_shapes_stay_closed(name: str) -> None:
    box = Box((16, 64))
    fine = shape_voxels(name, box)
    for factor in ((0.75, 0.9, 0.8), (0.83, 1.0, 0.97)):
        before, after = check_closed(fine, scaled(fine, box, factor)[-1], factor, 32)
        assert before > 0
        assert after > 0


# --- Random changes


def test_changes_follow_from_seed_epoch_and_item() -> None:
    both = Augment(mirror=True, turn=True, scale=(0.75, 1.0))
    drawn = [both.change(seed, epoch, item) for seed, epoch, item in product(range(5), range(10), range(20))]
    assert drawn == [both.change(seed, epoch, item) for seed, epoch, item in product(range(5), range(10), range(20))]
    assert len(set(drawn)) == 1000
    assert np.mean([change.mirror for change in drawn]) == pytest.approx(0.5, abs=0.06)
    assert [np.mean([change.quarters == n for change in drawn]) for n in range(4)] == pytest.approx(
        [0.25] * 4, abs=0.05
    )
    values = np.array([change.factors for change in drawn])
    assert values.min() >= 0.75
    assert values.max() <= 1.0
    assert values.mean(0) == pytest.approx([0.875] * 3, abs=0.01)
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.1
    # One kind of change does not depend on whether the others are on.
    for change, alone in zip(drawn[:200], product(range(1), range(10), range(20)), strict=True):
        assert Augment(mirror=True).change(*alone) == (None, 0, change.mirror)
        assert Augment(turn=True).change(*alone) == (None, change.quarters, False)
        assert Augment(scale=(0.75, 1.0)).change(*alone) == (change.factors, 0, False)
        assert Augment().change(*alone) == (None, 0, False)


@pytest.mark.parametrize(("options", "message"), [
    ({"scale": (0.0, 1.0)}, r"scale must be a range within \(0, 1\], got \(0.0, 1.0\)"),
    ({"scale": (0.9, 0.8)}, r"scale must be a range within \(0, 1\]"),
    ({"scale": (0.9, 1.1)}, r"scale must be a range within \(0, 1\]"),
    ({"scale": (0.9,)}, r"scale must be a range within \(0, 1\]"),
    ({"variants": 0}, "variants must be at least 1, got 0"),
])  # fmt: skip
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**options)


def test_settings_are_plain_values() -> None:
    both = Augment(mirror=True, scale=(0.75, 1.0))
    assert both.to_dict() == {"mirror": True, "turn": False, "scale": [0.75, 1.0], "variants": 8}
    assert Augment.from_dict(both.to_dict()) == both
    assert [augment.active for augment in (Augment(), Augment(variants=3), Augment(turn=True), both)] == [
        *(False, False, True, True),
    ]


# --- Datasets


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, box = tmp_path_factory.mktemp("data") / "set", Box((16, 32))
    sources = procedural_sources({"chair": 4, "lamp": 3}, box)
    assert not build(sources, folder, box, attributes=("normal", "label")).skipped
    return folder


def same(a: Voxels, b: Voxels) -> bool:
    attributes = [torch.equal(value, b.attributes[name]) for name, value in a.attributes.items()]
    return a.grid.same_voxels(b.grid) and a.attributes.keys() == b.attributes.keys() and all(attributes)


@pytest.mark.parametrize("level", [0, 1, -1])
def test_shapes_of_a_dataset_with_changes(data: Path, level: int) -> None:
    shapes, finest = ShapeFolder(data, level=level), ShapeFolder(data, level=-1)
    off = AugmentedShapes(shapes, Augment(), 3)
    assert all(same(off.variant(item, epoch), shapes[item]) for item in range(len(off)) for epoch in range(2))
    augment = Augment(mirror=True, turn=True, scale=(0.75, 1.0))
    changed = AugmentedShapes(shapes, augment, 3)
    assert (len(changed), changed.sizes) == (len(shapes), shapes.sizes)
    differ = 0
    for item, epoch in product(range(len(shapes)), range(3)):
        factor, quarters, mirror = augment.change(3, epoch, item)
        assert factor is not None
        expected = turned(scaled(finest[item], shapes.card.box, factor)[level], quarters)
        expected = mirror_image(expected) if mirror else expected
        found = changed.variant(item, epoch)
        assert same(found, expected)
        assert found.num_voxels > 0
        assert set(found.attributes) == set(shapes[item].attributes)
        differ += not found.grid.same_voxels(shapes[item].grid)
    assert differ > 2 * len(shapes)
    exact = AugmentedShapes(shapes, Augment(mirror=True), 3)
    images = [exact.variant(0, epoch) for epoch in range(8)]
    assert {same(image, shapes[0]) + 2 * same(image, mirror_image(shapes[0])) for image in images} == {1, 2}


def test_turns_need_a_square_box(tmp_path: Path) -> None:
    box = Box((16, 32), (1.0, 0.5, 0.5))
    build(procedural_sources({"chair": 3}, box), tmp_path, box)
    with pytest.raises(ValueError, match=r"augment.turn needs a box with a square base, got \(1.0, 0.5, 0.5\)"):
        AugmentedShapes(ShapeFolder(tmp_path), Augment(turn=True))
    AugmentedShapes(ShapeFolder(tmp_path), Augment(mirror=True))


def test_batches_depend_neither_on_workers_nor_on_interruptions(data: Path) -> None:
    shapes = AugmentedShapes(ShapeFolder(data), Augment(mirror=True, turn=True, scale=(0.8, 1.0)), 5)

    def first(count: int, start: int = 0, workers: int = 0) -> list[Voxels]:
        config = TrainConfig(batch_size=2, seed=5, workers=workers)
        return list(islice(training_batches(shapes, config, start, 0, 1), count))

    every = first(9)
    assert all(same(a, b) for a, b in zip(every, first(9, workers=2), strict=True))
    for start in (1, 3, 7):
        assert all(same(a, b) for a, b in zip(every[start:], first(9 - start, start), strict=True))
    plain = list(islice(training_batches(ShapeFolder(data), TrainConfig(batch_size=2, seed=5), 0, 0, 1), 9))
    assert [batch.batch_size for batch in plain] == [batch.batch_size for batch in every]
    assert not any(same(a, b) for a, b in zip(plain, every, strict=True))


def test_latents_of_several_variants_are_kept(data: Path) -> None:
    folder = ShapeFolder(data)
    shapes = AugmentedShapes(folder, Augment(mirror=True, scale=(0.8, 1.0), variants=3), 5)
    latents = LatentDataset(shapes)
    before = [[latents.variant(item, epoch) for epoch in range(3)] for item in range(len(folder))]
    assert not same(before[0][0], before[0][1])
    calls: list[int] = []

    def encode(voxels: Voxels) -> Voxels:
        calls.append(voxels.batch_size)
        return voxels

    latents.encode(encode, TrainConfig(batch_size=4))
    assert sum(calls) == 3 * len(folder)
    for item, epoch in product(range(len(folder)), range(7)):
        found = latents.variant(item, epoch)
        assert same(found, before[item][epoch % 3])
        assert set(found.attributes[SHAPE_INDEX].tolist()) == {item}
        assert found.num_voxels <= latents.sizes[item]
    assert latents.sizes == [max(one.num_voxels for one in item) for item in before]
    assert LatentDataset(folder).variants == 1
