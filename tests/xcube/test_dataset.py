"""Datasets on disk: what is written is read back, NumPy can read it alone, and what is damaged is named."""

import csv
import errno
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparsevox as sv
from xcube.data import Attribute, Box, Card
from xcube.data.dataset import (
    ATTRIBUTES,
    Entry,
    check_name,
    is_dataset,
    level_path,
    read_card,
    read_index,
    read_shape,
    write_card,
    write_index,
    write_shape,
)

BOX = Box((4, 16), (2.0, 2.0, 1.0))
CARD = Card(BOX, {name: ATTRIBUTES[name] for name in ("normal", "color", "label")}, {"seed": 3}, "here", "CC0")


def level_of(number, count=20):
    generator = torch.Generator().manual_seed(number)
    size = BOX.voxel_size(number)
    half = torch.tensor(BOX.shape(number)) // 2
    ijk = torch.randint(-2, 2, (count, 3), generator=generator).clamp(-half, half - 1)
    grid = sv.Grid.from_coords(ijk, voxel_size=size, origin=size / 2)
    normal = torch.nn.functional.normalize(torch.randn(grid.num_voxels, 3, generator=generator), dim=1)
    color = torch.rand(grid.num_voxels, 3, generator=generator)
    label = torch.randint(-5, 300, (grid.num_voxels,), generator=generator)
    return sv.Voxels(grid, {"normal": normal, "color": color, "label": label, "density": color[:, :1]})


def written(root):
    levels = [level_of(0), level_of(1)]
    write_card(root, CARD)
    write_shape(root, CARD, "chairs/a", levels)
    entry = Entry("chairs/a", "train", True, tuple(level.num_voxels for level in levels))
    write_index(root, CARD, [entry])
    return levels, entry


# --- There and back


def test_a_shape_comes_back(tmp_path):
    levels, entry = written(tmp_path)
    for number, level in enumerate(levels):
        back = read_shape(tmp_path, CARD, entry, number)
        assert back.grid.same_voxels(level.grid)
        assert (back.grid.voxel_size, back.grid.origin) == (level.grid.voxel_size, level.grid.origin)
        assert list(back.attributes) == ["normal", "color", "label"]
        assert {name: value.dtype for name, value in back.attributes.items()} == {
            "normal": torch.float32,
            "color": torch.float32,
            "label": torch.int64,
        }
        assert torch.allclose(back.attributes["normal"], level.attributes["normal"], atol=5e-4)
        assert torch.allclose(back.attributes["color"], level.attributes["color"], atol=0.5 / 255 + 1e-6)
        assert torch.equal(back.attributes["label"], level.attributes["label"])
    assert read_card(tmp_path) == CARD
    assert read_index(tmp_path, CARD) == [entry]
    assert is_dataset(tmp_path)


def test_a_dataset_of_an_earlier_version_is_read(tmp_path):
    _, entry = written(tmp_path)
    index, card = tmp_path / "index.csv", tmp_path / "card.json"
    index.write_text(index.read_text().replace("watertight", "closed"))
    card.write_text(card.read_text().replace("license", "licen" + "ce"))
    assert read_card(tmp_path) == CARD
    assert read_index(tmp_path, CARD) == [entry]


def test_numpy_csv_and_json_read_it_alone(tmp_path):
    levels, _ = written(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["levels"], card["size"]) == ([4, 16], [2.0, 2.0, 1.0])
    assert (card["voxel_sizes"], card["origins"]) == ([0.5, 0.125], [0.25, 0.0625])
    assert (card["source"], card["license"], card["options"]) == ("here", "CC0", {"seed": 3})
    assert card["attributes"]["normal"] == {"dtype": "float16", "channels": 3}
    with (tmp_path / "index.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row == {
        "name": "chairs/a",
        "split": "train",
        "watertight": "1",
        "voxels_4": str(levels[0].num_voxels),
        "voxels_16": str(levels[1].num_voxels),
    }
    arrays = np.load(tmp_path / "shapes" / row["name"] / "16.npz", allow_pickle=False)
    assert arrays["ijk"].shape == (levels[1].num_voxels, 3)
    assert np.array_equal(arrays["ijk"], levels[1].grid.ijk.numpy())
    for name, about in card["attributes"].items():
        assert arrays[f"attribute:{name}"].dtype == about["dtype"]
        assert arrays[f"attribute:{name}"].shape[1:] == (() if about["channels"] is None else (about["channels"],))


def test_equal_shapes_give_equal_bytes(tmp_path):
    for root in ("one", "two"):
        (tmp_path / root).mkdir()
        written(tmp_path / root)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_watertight_may_be_unknown_and_rows_are_ordered(tmp_path):
    entries = [Entry("b", "val", None, (1, 2)), Entry("a", "train", False, (3, 4))]
    write_index(tmp_path, CARD, entries)
    assert read_index(tmp_path, CARD) == entries[::-1]


# --- Names


PART = st.text("ab.0_~%-", min_size=1, max_size=5).filter(lambda part: part[0] != "." and not part.endswith(".npz"))


@given(st.lists(PART, min_size=1, max_size=3))
def test_names(parts):
    assert check_name("/".join(parts)) == "/".join(parts)


BAD = (
    "",
    "../x",
    "x/../y",
    "x/..",
    "..",
    ".",
    "./x",
    "/x",
    "x/",
    "x//y",
    "x\\y",
    "C:x",
    "a b",
    "é",
    ".x",
    "x\n",
    "x\0",
)


@pytest.mark.parametrize("name", [*BAD, "4.npz", "x/16.npz/y", "x" * 201])
def test_bad_names(tmp_path, name):
    message = "name must consist of parts of letters"
    with pytest.raises(ValueError, match=message):
        check_name(name)
    with pytest.raises(ValueError, match=message):
        write_shape(tmp_path / "in", CARD, name, [level_of(0), level_of(1)])
    assert not list(tmp_path.iterdir())


def test_an_index_cannot_lead_out_of_the_folder(tmp_path):
    written(tmp_path)
    index = tmp_path / "index.csv"
    index.write_text(index.read_text().replace("chairs/a", "../../a"))
    with pytest.raises(ValueError, match=r"index.csv, line 2: name must consist of .* got '../../a'"):
        read_index(tmp_path, CARD)


# --- Attributes that do not fit


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", lambda n: torch.full((n,), 40_000), r"attribute 'label' must fit into torch.int16, got 40000"),
        ("normal", lambda n: torch.full((n, 3), 1e6), r"attribute 'normal' must fit into torch.float16, got 1000000"),
        ("normal", lambda n: torch.zeros(n, 2), r"attribute 'normal' must have 3 channels, got \[\d+, 2\]"),
        ("label", lambda n: torch.zeros(n, 1).long(), r"attribute 'label' must have None channels"),
    ],
)
def test_attributes_that_do_not_fit(tmp_path, name, value, message):
    levels = [level_of(0), level_of(1)]
    levels[1] = levels[1].with_attributes(**{name: value(levels[1].num_voxels)})
    with pytest.raises(ValueError, match=message):
        write_shape(tmp_path, CARD, "a", levels)
    assert not list(tmp_path.iterdir())


def test_a_missing_attribute(tmp_path):
    levels = [sv.Voxels(level_of(n).grid) for n in range(2)]
    with pytest.raises(ValueError, match=r"there is no attribute 'normal', only \[\]"):
        write_shape(tmp_path, CARD, "a", levels)


def test_a_type_that_cannot_be_stored():
    with pytest.raises(ValueError, match=r"attribute 'part' must have a dtype of .*, got 'uint16'"):
        Card(BOX, {"part": Attribute("uint16", None)})


# --- Damage


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"card.json does not exist"):
        read_card(tmp_path)
    assert not is_dataset(tmp_path)
    _, entry = written(tmp_path)
    (tmp_path / "index.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"index.csv does not exist"):
        read_index(tmp_path, CARD)
    level_path(tmp_path, "chairs/a", 16).unlink()
    with pytest.raises(FileNotFoundError, match=r"shapes/chairs/a/16.npz"):
        read_shape(tmp_path, CARD, entry, 1)


@pytest.mark.parametrize("size", [0, 1, 100, -1, -30])
def test_a_file_cut_off_is_named(tmp_path, size):
    _, entry = written(tmp_path)
    path = level_path(tmp_path, "chairs/a", 4)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"shapes/chairs/a/4.npz"):
        read_shape(tmp_path, CARD, entry, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"card.json: must be 'xcube shapes' of version 1, got 'xcube shapes' of version 2"),
        ({"format": "else"}, r"card.json: must be 'xcube shapes' of version 1, got 'else'"),
        ({"levels": [3]}, r"card.json: levels must begin with an even number"),
        ({"levels": 3}, r"card.json: "),
        ({"attributes": {"normal": {"dtype": "object", "channels": 3}}}, r"card.json: .* got 'object'"),
        ({"attributes": {"normal": {"kind": 3}}}, r"card.json: "),
        ({"attributes": 3}, r"card.json: "),
    ],
)
def test_cards_of_others(tmp_path, change, message):
    written(tmp_path)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_card(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", "\0"])
def test_a_damaged_card(tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ValueError, match=r"card.json: "):
        read_card(tmp_path)
    assert not is_dataset(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("voxels_16", "voxels_17", r"index.csv, line 1: expected the columns"),
        (",1,", ",yes,", r"index.csv, line 2: 'yes'"),
        ("chairs/a,train,1,", "chairs/a,", r"index.csv, line 2: "),
        ("chairs/a,train,1,", "chairs/a,train,1,7,", r"index.csv, line 2: expected 5 columns, got 6"),
        ("chairs/a,train,1,", "chairs/a,train,1,x", r"index.csv, line 2: invalid literal"),
    ],
)
def test_a_damaged_index(tmp_path, old, new, message):
    written(tmp_path)
    path = tmp_path / "index.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_index(tmp_path, CARD)


def test_a_shape_that_is_not_that_of_card_and_index(tmp_path):
    _, entry = written(tmp_path)
    with pytest.raises(ValueError, match=r"4.npz: expected the 3 voxels of the index, got \d+"):
        read_shape(tmp_path, CARD, entry._replace(voxels=(3, 3)), 0)
    with pytest.raises(ValueError, match=r"4.npz: expected the attributes {'normal': .*}, got {'normal'"):
        read_shape(tmp_path, Card(BOX, {"normal": ATTRIBUTES["normal"]}), entry, 0)
    with pytest.raises(ValueError, match=r"4.npz: expected one grid with voxel_size=0.25, origin=0.125, got Grid"):
        read_shape(tmp_path, Card(Box((4, 16)), CARD.attributes), entry, 0)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    levels, _ = written(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: write_card(tmp_path, Card(BOX, {})),
        lambda: write_index(tmp_path, CARD, []),
        lambda: write_shape(tmp_path, CARD, "chairs/a", levels[::-1]),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
