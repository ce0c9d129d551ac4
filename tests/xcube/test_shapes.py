"""Families of shapes: connected, thick, inside the box, distinct, labeled, and the same for equal seeds."""

import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage

from xcube.data.hierarchy import Box, build_hierarchy
from xcube.procedural.families.draw import PARTS, THIN, Draw, part_labels
from xcube.procedural.poses import Lattice
from xcube.procedural.shapes import (
    FAMILIES,
    LABELS,
    MAX_EXTENT,
    SEEDS,
    make_shape,
    procedural_dataset,
    procedural_sources,
    shape_names,
    shape_voxels,
    split_of_seed,
)
from xcube.procedural.solids import Solid

BOX = Box((16, 64))


def occupancy(solid: Solid, resolution: int) -> np.ndarray:
    """Whether the centers of the voxels of the box, but for the outermost ones, lie in a solid."""
    half = 0.5 / resolution
    lattice = Lattice.of((1 - resolution // 2,) * 3, (resolution - 1,) * 3, 1 / resolution, torch.device("cpu"))
    return (solid.moved(half, half, half).lattice(lattice) < 0).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_connected_and_keep_the_margin(family: str) -> None:
    parts = set()
    for seed in range(8):
        shape = make_shape(family, seed)
        assert ndimage.label(occupancy(shape.solid, 64))[1] == 1, shape.name
        assert np.abs(shape.solid.bounds).max() <= MAX_EXTENT + 1e-9, shape.name
        voxels = shape_voxels(shape.name, BOX)
        assert [level.num_voxels > 0 for level in build_hierarchy(voxels, BOX)] == [True, True]
        normal = torch.linalg.vector_norm(voxels.attributes["normal"], dim=1)
        assert float((normal - 1).abs().max()) < 1e-5
        parts |= set(voxels.attributes["label"].tolist())
    assert parts <= set(shape.labels)
    assert len(parts) >= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_no_part_is_thinner_than_three_voxels_of_64(family: str) -> None:
    fine = 128
    for seed in range(3):
        inside = occupancy(make_shape(family, seed).solid, fine)
        inside = np.pad(inside[tuple(slice(a.min(), a.max() + 1) for a in inside.nonzero())], 1)
        depth = ndimage.distance_transform_edt(inside)  # to the nearest center outside
        # All of it lies near to where a ball of this diameter fits in; edges and corners stick out of the balls. The
        # depth counts whole voxels, so it may fall short by three quarters of one.
        deep = depth >= 3 / 64 / 2 * fine - 0.75
        assert (ndimage.distance_transform_edt(~deep)[inside] <= 0.055 * fine).all(), (family, seed)
    assert THIN > 3 / 64


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_differ(family: str) -> None:
    made = {occupancy(make_shape(family, seed).solid, 32).tobytes() for seed in range(30)}
    assert len(made) == 30


def test_three_levels_fit_too() -> None:
    box = Box((16, 128, 512))
    for family in FAMILIES:
        solids = [make_shape(family, seed).solid for seed in range(40)]
        assert max(np.abs(solid.bounds).max() for solid in solids) < 0.5 - box.margin - box.voxel_size(-1)


def test_upright_and_looking_along_x() -> None:
    for seed in range(10):
        solid = make_shape("sofa", seed).solid
        (a, b, _c), (d, e, _f) = solid.bounds
        assert e - b > d - a  # longer than deep
        voxels = shape_voxels(f"sofa-{seed:06}", BOX)
        back = voxels.attributes["label"] == next(k for k, name in LABELS.items() if name == "sofa.back")
        if bool(back.any()):
            ijk = voxels.grid.ijk.double()
            assert float(ijk[back][:, 0].mean()) < float(ijk[~back][:, 0].mean())
            assert float(ijk[back][:, 2].mean()) > float(ijk[~back][:, 2].mean())


@pytest.mark.parametrize(("family", "part", "front"), [("bed", "pillow", False), ("cabinet", "handle", True)])
def test_pillows_are_at_the_head_and_handles_in_front(family: str, part: str, front: bool) -> None:
    label = next(k for k, name in LABELS.items() if name == f"{family}.{part}")
    seen = 0
    for seed in range(10):
        voxels = shape_voxels(f"{family}-{seed:06}", BOX)
        found = voxels.attributes["label"] == label
        if bool(found.any()):
            seen += 1
            x = voxels.grid.ijk[:, 0].double()
            assert (float(x[found].mean()) > float(x[~found].mean())) == front, seed
    assert seen >= 5


def test_equal_seeds_make_equal_shapes() -> None:
    assert make_shape("chair", 5) == make_shape("chair", 5)
    assert make_shape("chair", 5) != make_shape("chair", 6)
    assert make_shape("chair", 5).solid != make_shape("table", 5).solid
    first, again = shape_voxels("car-000003", BOX), shape_voxels("car-000003", BOX)
    assert first.grid.same_voxels(again.grid)
    assert torch.equal(first.attributes["label"], again.attributes["label"])
    shape = make_shape("lamp", 850_000)
    assert (shape.name, shape.split) == ("lamp-850000", "val")
    assert pickle.loads(pickle.dumps(shape)) == shape


def test_choices_are_the_same_on_every_machine() -> None:
    draw = Draw(7, 1)
    made = [draw.between(-1, 1), draw.count(0, 99), draw.chance(0.5), draw.pick("abcd"), draw.pick("ab", (1, 9))]
    assert made == [0.5402819020069483, 87, True, "a", "b"]
    assert Draw(7, 2).between(-1, 1) != made[0]


def test_labels_count_through_the_families() -> None:
    assert [label for family in FAMILIES for label in part_labels(family)] == list(range(1, len(LABELS)))
    assert LABELS[0] == "none"
    assert LABELS[part_labels("lamp")[1]] == "lamp.pole"
    assert make_shape("table", 0).labels == {k: v for k, v in LABELS.items() if v.startswith("table.")}
    assert set(PARTS) == set(FAMILIES)


def test_datasets_have_splits_of_their_own_seeds() -> None:
    listed = shape_names(604)
    assert len(listed) == 604 == len(set(listed))
    families = [name.split("-")[0] for name, _ in listed]
    assert [families.count(family) for family in FAMILIES] == [76, 76, 76, 76, 75, 75, 75, 75]
    for name, split in listed:
        assert int(name.split("-")[1]) in SEEDS[split]
    assert [split for _, split in listed].count("val") == [split for _, split in listed].count("test") == 24
    assert shape_names({"car": 2, "lamp": 1}) == [
        ("car-000000", "train"),
        ("car-000001", "train"),
        ("lamp-000000", "train"),
    ]
    assert set(shape_names(60)) <= set(listed)


def test_a_dataset_is_made_shape_by_shape() -> None:
    made = list(procedural_dataset({"chair": 20}, Box((32,))))
    assert [name for name, _, _ in made] == [name for name, _ in shape_names({"chair": 20})]
    assert {split for _, split, _ in made} == {"train", "val", "test"}
    sources = procedural_sources({"chair": 20}, Box((32,)))
    assert [(source.name, source.split) for source in sources] == shape_names({"chair": 20})
    loaded = pickle.loads(pickle.dumps(sources[-1])).load()
    assert loaded.grid.same_voxels(made[-1][2].grid)


def test_shapes_grow_with_the_box() -> None:
    large = shape_voxels("table-000001", Box((16, 64), (4.0, 4.0, 4.0)))
    assert large.grid.voxel_size == (4 / 64,) * 3
    assert torch.equal(large.grid.ijk, shape_voxels("table-000001", BOX).grid.ijk)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: make_shape("boat", 0), "family must be one of"),
        (lambda: make_shape("car", -1), "seed must be between"),
        (lambda: split_of_seed(1_000_000), "seed must be between"),
        (lambda: shape_voxels("chair-12", BOX), "name must be a family"),
        (lambda: shape_voxels("boat-000001", BOX), "family must be one of"),
        (lambda: shape_names({"boat": 1}), "the families in counts must be among"),
        (lambda: shape_names({"car": -1}), "counts must be between"),
        (lambda: shape_names({"car": 800_001}), "counts must be between"),
        (lambda: part_labels("boat"), "family must be one of"),
    ],
)
def test_bad_arguments_are_named(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_seeds_are_integers() -> None:
    with pytest.raises(TypeError, match="seed must be an int"):
        make_shape("car", 1.5)  # type: ignore[arg-type]
