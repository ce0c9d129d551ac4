"""Captions of shapes: true, in several wordings, the same ones every time; and their file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xcube.balls import ball_dataset
from xcube.cli import main
from xcube.data.captions import read_captions, write_captions
from xcube.data.dataset import About, Entry
from xcube.data.hierarchy import Box
from xcube.procedural.captions import FACTS, NOUNS, caption, captions_of
from xcube.procedural.shapes import FAMILIES, LABELS, make_shape, shape_voxels

BOX = Box((16, 64))
# Facts that follow from the labels of the voxels: family, fact, value, part, and whether the part is there.
VISIBLE = (
    ("chair", "arms", "yes", "arm", True),
    ("chair", "arms", "no", "arm", False),
    ("chair", "back", "none", "back", False),
    ("chair", "back", "slatted", "back", True),
    ("chair", "base", "legs", "leg", True),
    ("chair", "base", "pedestal", "leg", False),
    ("table", "base", "column", "base", True),
    ("table", "use", "desk", "drawer", True),
    ("sofa", "arms", "yes", "arm", True),
    ("sofa", "arms", "no", "arm", False),
    ("sofa", "feet", "yes", "leg", True),
    ("lamp", "type", "hanging", "pole", True),
    ("airplane", "type", "glider", "engine", False),
    ("airplane", "wheels", "yes", "gear", True),
    ("cabinet", "feet", "plinth", "leg", True),
    ("lamp", "stand", "cross", "base", True),
    ("bed", "type", "posts", "leg", True),
    ("bed", "headboard", "yes", "board", True),
    ("bed", "headboard", "no", "board", False),
)


def facts_of(family: str, seed: int) -> dict[str, str]:
    return dict(make_shape(family, seed).facts)


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_are_known_and_all_of_them_occur(family: str) -> None:
    seen = {(name, value) for seed in range(300) for name, value in facts_of(family, seed).items()}
    listed = {(name, value) for name, values in FACTS[family].items() for value in values}
    assert seen <= listed
    assert not {each for each in listed - seen if FACTS[family][each[0]][each[1]] is not None}


@pytest.mark.parametrize(("family", "name", "value", "part", "there"), VISIBLE)
def test_facts_are_true(family: str, name: str, value: str, part: str, there: bool) -> None:
    """The labels of the voxels, which the facts do not come from, say so too."""
    seeds = [seed for seed in range(400) if facts_of(family, seed).get(name) == value][:4]
    assert len(seeds) == 4
    for seed in seeds:
        labels = {LABELS[label] for label in shape_voxels(f"{family}-{seed:06}", BOX).attributes["label"].tolist()}
        assert (f"{family}.{part}" in labels) == there, (seed, facts_of(family, seed))


def test_sizes_are_true() -> None:
    """Wide chairs are wider than narrow ones, thick legs have more voxels, tall chairs are taller."""

    def extent(seed: int, axis: int) -> int:
        low, high = shape_voxels(f"chair-{seed:06}", BOX).grid.bounds()
        return int((high - low)[0, axis])

    def seeds(**wanted: str) -> list[int]:
        return [s for s in range(400) if wanted.items() <= facts_of("chair", s).items()][:6]

    plain = {"arms": "no", "base": "legs"}
    wide, narrow = (
        [extent(s, 1) for s in seeds(height="normal", width=w, back="solid", **plain)] for w in ("wide", "narrow")
    )
    assert min(wide) > max(narrow)
    tall, low = ([extent(s, 2) for s in seeds(height=h, back="none", base="legs")] for h in ("tall", "normal"))
    assert min(tall) > max(low)


def test_cabinets_are_as_wide_as_they_are_said_to_be() -> None:
    """Those of two parts, too, whose lower part is wider than high."""
    ratios: dict[str, list[float]] = {"wide": [], "narrow": [], "": []}
    for seed in range(800):
        facts = facts_of("cabinet", seed)
        if facts["type"] not in ("display", "wardrobe", "bookshelf") or len(ratios[facts.get("width", "")]) > 7:
            continue
        low, high = shape_voxels(f"cabinet-{seed:06}", BOX).grid.bounds()
        _, width, height = (high - low)[0].tolist()
        ratios[facts.get("width", "")].append(width / height)
    assert min(ratios["wide"]) > 0.95
    assert max(ratios["narrow"]) < 0.75
    assert len(ratios["wide"]) > 3


def test_tables_with_six_corners_and_two_columns() -> None:
    """Outlines of tops and numbers of parts under them, by the voxels."""
    seen = set()
    for seed in range(1500):
        facts = facts_of("table", seed)
        if facts["top"] not in ("octagon", "hexagon") and facts["base"] not in ("columns", "column"):
            continue
        name = facts["top"] if facts["top"] in ("octagon", "hexagon") else facts["base"]
        if name in seen or (name in ("columns", "column") and facts["use"] != "dining"):
            continue
        seen.add(name)
        voxels = shape_voxels(f"table-{seed:06}", Box((32, 128)))
        low, high = voxels.grid.bounds()
        level = voxels.grid.ijk[:, 2] - int(low[0, 2])
        if name in ("columns", "column"):
            middle = voxels.grid.ijk[level == int((high - low)[0, 2]) // 2]
            gaps = middle[:, 1].unique().diff()
            assert (int(gaps.max()) > 3) == (name == "columns"), seed
        else:
            # The area of a polygon of n corners at a distance r is n / 2 r^2 sin(360 / n degrees).
            top = voxels.grid.ijk[level >= int((high - low)[0, 2]) - 3][:, :2].unique(dim=0).double()
            radius = float((top - top.mean(0)).norm(dim=1).max()) + 0.5
            assert (len(top) / radius**2 < 2.71) == (name == "hexagon"), (seed, name)
    assert seen == {"octagon", "hexagon", "columns", "column"}


@given(st.sampled_from(FAMILIES), st.integers(0, 5000), st.integers(0, 1 << 40), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_captions_say_what_they_mention(family: str, number: int, seed: int, mentioned: float) -> None:
    facts = facts_of(family, number)
    made = caption(family, facts, seed, mentioned)
    assert made == caption(family, facts, seed, mentioned)
    assert made.text == made.text.lower().strip()
    assert made.facts.items() <= facts.items()
    for name, value in made.facts.items():
        wording = FACTS[family][name][value]
        assert wording is not None
        said = any(phrase in made.text for phrase in wording.phrases)
        assert said or (name == "arms" and value == "yes" and "armchair" in made.text)
    nouns = [*NOUNS.get(family, (family,)), "armchair"]
    nouns += [p for v in FACTS[family].values() for w in v.values() if w and w.place == "noun" for p in w.phrases]
    assert any(noun in made.text for noun in nouns)


def test_nothing_or_everything_is_mentioned() -> None:
    facts = facts_of("chair", 0)
    expressed = {name: value for name, value in facts.items() if FACTS["chair"][name][value] is not None}
    for seed in range(20):
        assert caption("chair", facts, seed, 1.0).facts == expressed
        assert caption("chair", {n: v for n, v in facts.items() if v != "none"}, seed, 0.0).facts == {}
    # A stool is not called a chair.
    assert all(caption("chair", {"back": "none"}, seed, 0.0).facts for seed in range(20))


@pytest.mark.parametrize(("family", "facts", "message"), [
    ("boat", {}, "family must be one of chair, table, .*, got 'boat'"),
    ("chair", {"arms": "three"}, "facts must be among those of 'chair' in FACTS, got arms=three"),
    ("chair", {"keel": "yes"}, "got keel=yes"),
])  # fmt: skip
def test_unknown_facts_are_named(family: str, facts: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caption(family, facts, 0)


def entry(name: str, title: str = "") -> Entry:
    return Entry(name, "train", None, (1,), About(title=title))


def test_wordings() -> None:
    some = captions_of(entry("table-000007"))
    assert 2 < len(some) <= 8
    assert len(set(some)) == len(some)
    assert some == captions_of(entry("table-000007"))
    assert some != captions_of(entry("table-000007"), seed=1)
    assert set(captions_of(entry("table-000007"), 3)) != set(some)
    # Models have captions of their titles, the same ones in all copies.
    assert set(captions_of(entry("chair/Scopia/029-chair", "Office armchair 2"))) == {
        "an office armchair", "office armchair", "a chair", "chair",
    }  # fmt: skip
    copies = [captions_of(entry(f"chair/Scopia/029-chair{copy}", "Office armchair")) for copy in ("", "~1", "~2")]
    assert copies[0] == copies[1] == copies[2]
    assert captions_of(entry("something")) == captions_of(entry("scan-000123")) == []
    with pytest.raises(ValueError, match="wordings must be at least 1, got 0"):
        captions_of(entry("table-000007"), 0)


def test_the_file(tmp_path: Path) -> None:
    captions = {"a": ["eine Bank", "ein Stück"], "b/c": ["x"]}
    write_captions(tmp_path / "captions.json", captions)
    assert read_captions(tmp_path / "captions.json") == captions
    assert json.loads((tmp_path / "captions.json").read_text()) == captions
    (tmp_path / "plain.json").write_text('{"a": "one text"}')
    assert read_captions(tmp_path / "plain.json") == {"a": ["one text"]}


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', '{"a": [3]}', "{"])
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(ValueError, match=r"captions\.json must map the names of shapes to texts"):
        read_captions(tmp_path / "captions.json")


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("jsonargparse", reason="the command line")
    assert (
        main(["data", "procedural", "--out", str(tmp_path / "d"), "--count", "8", "--levels", "8", "--workers", "0"])
        == 0
    )
    capsys.readouterr()
    assert main(["data", "captions", str(tmp_path / "d")]) == 0
    assert "of 8 of 8 shapes written to" in capsys.readouterr().out
    found = read_captions(tmp_path / "d" / "captions.json")
    assert {name.split("-")[0] for name in found} == set(FAMILIES)
    assert main(["data", "captions", str(tmp_path / "d"), "--out", str(tmp_path / "one.json"), "--wordings", "1"]) == 0
    assert {len(texts) for texts in read_captions(tmp_path / "one.json").values()} == {1}
    # Balls are not known to be anything.
    assert main(["data", "captions", str(ball_dataset(tmp_path / "balls", 16))]) == 1
    assert "no shape of" in capsys.readouterr().err
    assert main(["data", "captions", str(tmp_path)]) == 2
