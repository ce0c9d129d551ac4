"""HTML pages: their contents against Python sets, and how a browser shows them, if one is installed."""

import base64
import json
import os
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from bench.scenes import scene
from sparsevox import Grid, Mesh, Points, Voxels
from sparsevox.testing import VoxelSet, as_coords, voxel_sets
from sparsevox.viz import DIRECTIONS, show_html
from sparsevox.viz.colors import VIRIDIS, ramp

ONE = Grid.full(0, 1)
TWO = Grid.full(0, (2, 1, 1), voxel_size=(0.5, 1, 2), origin=(10, 20, 30))
TRIANGLE = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]), torch.tensor([[2, 0, 1]]))


class Page(HTMLParser):
    """The elements of a page that holds what we think it does."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, Any], str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.title = ""
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.manifest = json.loads(self.script("manifest"))

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.attributes += attrs
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self.inside == "title":
            self.title += data

    def script(self, name: str) -> str:
        (text,) = [text for attributes, text in self.scripts if attributes.get("id") == name]
        return text

    def level(
        self, shape: int = 0, number: int = 0
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Its entry, places [R, 3 or 4], faces [F, 3], bytes [R, 1 or 3] of attributes."""
        entry = self.manifest["shapes"][shape]["levels"][number]
        data = zlib.decompress(base64.b64decode(self.script(f"data-{shape}-{number}")))
        rows, width = entry["rows"], 4 if entry["kind"] == "voxels" else 3
        places = np.frombuffer(data, "<u2", rows * width).reshape(width, rows).T
        at = places.nbytes
        faces = np.frombuffer(data, "<u4", entry["faces"] * 3, at).reshape(-1, 3)
        at += faces.nbytes
        columns = {}
        for name in entry["colors"]:
            width = 3 if self.manifest["colors"][name]["kind"] == "rgb" else 1
            columns[name] = np.frombuffer(data, np.uint8, rows * width, at).reshape(width, rows).T
            at += rows * width
        assert at == len(data)
        return entry, places, faces, columns


@settings(max_examples=15)
@given(data=voxel_sets())
def test_voxels_and_their_sides(data: VoxelSet, tmp_path_factory) -> None:
    """Only voxels with an exposed side, each side with the light that its neighbors leave it."""
    path = tmp_path_factory.mktemp("page") / "a.html"
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size, voxel_size=(0.5, 1, 2), origin=7)
    everything = {i: {v[1:] for v in data.voxels if v[0] == i} for i in range(data.batch_size)}
    extents = [max(x) - min(x) for voxels in everything.values() if voxels for x in zip(*voxels, strict=True)]
    if max(extents, default=0) > 65535:
        with pytest.raises(ValueError, match="must span at most 65536 voxels along each axis"):
            show_html(grid, path)
        return
    if not data.batch_size:
        with pytest.raises(ValueError, match="shapes must hold at least one shape"):
            show_html(grid, path)
        return
    show_html(grid, path)
    page = Page(path)
    for item, voxels in everything.items():
        entry, places, _, _ = page.level(item, 0)
        actual = {}
        for *place, code in places.tolist():
            world = [o + s * p for o, s, p in zip(entry["origin"], entry["size"], place, strict=True)]
            ijk = tuple(round((x - 7) / s) for x, s in zip(world, (0.5, 1, 2), strict=True))
            actual[ijk] = [code // 6**side % 6 for side in range(6)]
        expected = {}
        for voxel in voxels:
            codes = []
            for d in DIRECTIONS:
                front = tuple(a + b for a, b in zip(voxel, d, strict=True))
                ring = [
                    tuple(f + s for f, s in zip(front, step, strict=True))
                    for step in np.ndindex(3, 3, 3)
                    for step in [tuple(s - 1 for s in step)]
                    if any(step) and not any(s and t for s, t in zip(step, d, strict=True))
                ]
                count = sum(r in voxels for r in ring)
                codes.append(0 if front in voxels else 1 + (count + 1) // 2)
            if any(codes):
                expected[voxel] = codes
        assert actual == expected
        assert entry["text"].startswith(f"{len(voxels):,} voxels")


def test_attributes(tmp_path) -> None:
    """Bytes on the way back are the numbers, up to a step of the scale."""
    grid = Grid.full(0, (3, 3, 3), voxel_size=0.1)
    generator = torch.Generator().manual_seed(0)
    n = grid.num_voxels
    values = {
        "normal": torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1),
        "color": torch.rand(n, 3, generator=generator) * 1.2 - 0.1,
        "label": torch.randint(-3, 4, (n,), generator=generator) * 1000,
        "density": torch.rand(n, 1, generator=generator) * 50 - 20,
        "latent": torch.randn(n, 2, generator=generator),
        "inside": torch.rand(n, generator=generator) < 0.5,
        "many": torch.arange(n) * 7,
    }
    values["density"][3] = torch.nan
    middle = int(grid.index(torch.tensor([[1, 1, 1]])))
    rows = [row for row in range(n) if row != middle]  # nobody sees the voxel in the middle
    coarse = Voxels(grid.coarsen(3), {"density": torch.tensor([100.0]), "many": torch.tensor([-5000])})
    show_html([coarse, Voxels(grid, values)], tmp_path / "a.html", classes={"label": {0: "road", 1000: "<tree>"}})
    page = Page(tmp_path / "a.html")
    entry, places, _, columns = page.level(0, 1)
    colors = page.manifest["colors"]
    assert places[:, :3].tolist() == [grid.ijk[row].tolist() for row in rows]
    assert entry["colors"] == ["normal", "color", "label", "density", "latent[0]", "latent[1]", "inside", "many"]
    assert np.abs(columns["normal"] / 255 * 2 - 1 - values["normal"].numpy()[rows]).max() < 1 / 255 + 1e-6
    assert np.abs(columns["color"] / 255 - values["color"].clamp(0, 1).numpy()[rows]).max() < 0.5 / 255 + 1e-6
    known = sorted(set(values["label"][rows].tolist()))
    assert [known[code] for code in columns["label"][:, 0]] == values["label"][rows].tolist()
    names = {0: "road", 1000: "<tree>"}
    assert colors["label"]["classes"] == [names.get(value, str(value)) for value in known]
    assert len(set(colors["label"]["palette"])) == len(known)
    assert colors["inside"]["classes"] == ["0", "1"]
    assert colors["many"]["kind"] == "label"
    for name, value in (("density", values["density"][:, 0]), ("latent[1]", values["latent"][:, 1])):
        low, high = colors[name]["range"]
        codes, given_ = columns[name][:, 0], value.numpy()[rows]
        assert ((codes == 255) == np.isnan(given_)).all()
        finite = codes < 255
        assert np.abs(low + codes / 254 * (high - low) - given_)[finite].max() <= (high - low) / 508 * 1.001
    assert colors["density"]["range"][1] == 100, "all levels have the same range"
    assert page.level(0, 0)[3]["density"].tolist() == [[254]]


def test_many_values_are_a_scale(tmp_path) -> None:
    grid = Grid.full(0, (300, 1, 1))
    show_html(Voxels(grid, {"row": grid.ijk[:, 0]}), tmp_path / "a.html")
    page = Page(tmp_path / "a.html")
    assert page.manifest["colors"]["row"]["range"] == [0, 299]
    assert len(page.manifest["colors"]["row"]["palette"]) == 256


def test_chosen_attributes(tmp_path) -> None:
    show_html(Voxels(ONE, {"a": torch.ones(1), "b": torch.ones(1)}), tmp_path / "a.html", attributes=["b"], color="b")
    assert list(Page(tmp_path / "a.html").manifest["colors"]) == ["b"]
    assert Page(tmp_path / "a.html").manifest["color"] == "b"


def test_meshes_and_points(tmp_path) -> None:
    """Positions are right to a 65,535th of the box; what faces have, their corners have."""
    generator = torch.Generator().manual_seed(1)
    vertices = torch.randn(20, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 100.0, 0.0]) + 1e6
    faces = torch.randint(0, 20, (9, 3), generator=generator)
    red = torch.rand(20, 3, generator=generator)
    part = torch.arange(9) % 3
    levels = [Mesh(vertices, faces, {"color": red}), Mesh(vertices, faces, {"color": red}, {"part": part})]
    show_html([*levels, Points(vertices, {"color": red})], tmp_path / "a.html")
    page = Page(tmp_path / "a.html")
    for number, kind in enumerate(("mesh", "mesh", "points")):
        entry, places, corners, columns = page.level(0, number)
        assert entry["kind"] == kind
        world = np.array(entry["origin"]) + places * np.array(entry["size"])
        flat = faces.numpy().reshape(-1)
        order = flat if number == 1 else np.arange(20)
        assert np.abs(world - vertices.numpy()[order]).max() < 100 * 8 / 65535
        assert np.abs(columns["color"] / 255 - red.numpy()[order]).max() < 0.5 / 255 + 1e-6
        if number < 2:
            assert (order[corners] == faces.numpy()).all()
        if number == 1:
            assert (columns["part"][corners][:, :, 0] == part.numpy()[:, None]).all()
    assert page.manifest["color"] == "color"
    low, high = np.array(page.manifest["shapes"][0]["bounds"])
    assert np.allclose([low, high], [vertices.amin(0), vertices.amax(0)], rtol=0, atol=1e-6)


def test_levels_shapes_and_batches(tmp_path) -> None:
    batch = Grid.stack([TWO, Grid.empty(1, voxel_size=(0.5, 1, 2), origin=(10, 20, 30))])
    show_html({"one": ONE, "pair": [batch.coarsen(2), Voxels(batch)]}, tmp_path / "a.html")
    shapes = Page(tmp_path / "a.html").manifest["shapes"]
    assert [shape["name"] for shape in shapes] == ["one", "pair[0]", "pair[1]"]
    assert [[level["rows"] for level in shape["levels"]] for shape in shapes] == [[1], [1, 2], [0, 0]]
    assert shapes[1]["levels"][1]["text"] == "2 voxels in 2 x 1 x 1, voxel size 0.5 x 1 x 2"
    assert shapes[1]["bounds"] == [[9.75, 19.5, 29], [10.75, 21.5, 33]]
    assert shapes[2]["bounds"] == [[0, 0, 0], [0, 0, 0]]


def test_half_a_million_voxels_are_a_few_megabytes(tmp_path) -> None:
    grid = Grid.from_coords(scene("shell", 400))
    assert grid.num_voxels > 500_000
    normal = torch.nn.functional.normalize(grid.ijk.float(), dim=1)
    noise = torch.rand(grid.num_voxels, 3, generator=torch.Generator().manual_seed(0))
    show_html(Voxels(grid, {"normal": normal, "color": noise}), tmp_path / "a.html")  # noise cannot be compressed
    assert (tmp_path / "a.html").stat().st_size < 15e6


NASTY = "</script><script>alert(1)</script>\"'&amp;{{data}}<!--"


def test_names_are_escaped(tmp_path) -> None:
    show_html(
        {NASTY: Voxels(ONE, {NASTY: torch.ones(1), "label": torch.ones(1).long()})},
        tmp_path / "a.html",
        title=NASTY,
        classes={"label": {1: NASTY}},
    )
    page = Page(tmp_path / "a.html")
    assert page.title == NASTY
    assert page.manifest["shapes"][0]["name"] == NASTY
    assert page.manifest["colors"]["label"]["classes"] == [NASTY]
    assert len(page.scripts) == 6  # manifest, one level, two shaders, three.js, ours
    assert not any("alert(1)" in text for attributes, text in page.scripts if attributes.get("id") != "manifest")


def test_pages_fetch_nothing(tmp_path) -> None:
    show_html(ONE, tmp_path / "a.html")
    page = Page(tmp_path / "a.html")
    policy = next(value for name, value in page.attributes if name == "content" and value and "default-src" in value)
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|connect-src|\*", policy)
    assert {value for name, value in page.attributes if name in ("src", "href")} == {"data:,"}
    code = "".join(text for _, text in page.scripts)
    assert set(re.findall(r"https?://[\w./]*", code)) == {"http://www.w3.org/1999/xhtml"}  # a name, not an address


def test_the_same_page_twice(tmp_path) -> None:
    for name in "ab":
        show_html([TWO.coarsen(2), TWO], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_scale_is_viridis() -> None:
    colormaps = pytest.importorskip("matplotlib", reason="needs the extra viz").colormaps
    at = np.linspace(0, 1, 256)
    assert np.abs(ramp(VIRIDIS, at) - colormaps["viridis"](at)[:, :3]).max() < 0.03


@pytest.mark.parametrize(
    ("shapes", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "shapes must hold at least one level, got none"),
        ({}, {}, ValueError, "shapes must hold at least one shape, got none"),
        ({"a": []}, {}, ValueError, r"shapes\['a'\] must hold at least one level, got none"),
        (3, {}, TypeError, "shapes must be a Grid, Voxels, Mesh or Points, or a list of these, got int"),
        ({"a": [ONE, "b"]}, {}, TypeError, r"shapes\['a'\]\[1\] must be a Grid.*got str"),
        ({1: ONE}, {}, TypeError, "names of shapes must be strings, got 1"),
        ([ONE, Grid.empty(2)], {}, ValueError, r"levels of shapes must have the same batch size, got \[1, 2\]"),
        (
            Grid.from_coords(torch.tensor([[0, 0, 0], [0, 65536, 0]])),
            {},
            ValueError,
            r"shapes\[''\]\[0\] must span at most 65536 voxels along each axis, got \[1, 65537, 1\]: coarsen or crop",
        ),
        (
            Points(torch.tensor([[0, 0, 0], [0, torch.inf, 0]])),
            {},
            ValueError,
            r"positions of shapes\[''\]\[0\] must be finite, got \(0.0, inf, 0.0\) in row 1",
        ),
        ({"a": Grid.empty(2), "a[1]": ONE}, {}, ValueError, r"names of shapes must be unique .*, got 'a\[1\]' twice"),
        (
            [Voxels(ONE, {"color": torch.ones(1)}), Voxels(ONE, {"color": torch.ones(1, 3)})],
            {},
            ValueError,
            r"attribute 'color' must be floats \[., 3\] in all levels that have it, or in none",
        ),
        (ONE, {"title": 3}, TypeError, "title must be a string, got 3"),
        (ONE, {"background": "red"}, ValueError, "background must be 'light' or 'dark', got 'red'"),
        (ONE, {"attributes": ["normal"]}, ValueError, r"attributes must be among \[\], got 'normal'"),
        (ONE, {"classes": {"label": {}}}, ValueError, r"classes must name attributes among \[\], got 'label'"),
        (
            TRIANGLE,
            {"color": "normal"},
            ValueError,
            r"color must be among \['height', 'level', 'plain'\], got 'normal'",
        ),
    ],
)
def test_bad_arguments(shapes, arguments, error, message, tmp_path) -> None:
    with pytest.raises(error, match=message):
        show_html(shapes, tmp_path / "a.html", **arguments)
    assert not list(tmp_path.iterdir())


def browser() -> str:
    """Chromium, wherever it is."""
    names = (os.environ.get("CHROME", ""), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium, or CHROME=path/of/it")
    return found


def picture(path: Path, address: str) -> tuple[np.ndarray, list[str]]:
    """What Chromium shows, and what its console says. Software draws, so that no graphics card is needed."""
    image = pytest.importorskip("PIL.Image", reason="needs the extra viz")
    shot = path.with_suffix(".png")
    flags = [
        *("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
        *("--hide-scrollbars", "--no-first-run", "--disable-extensions", "--disable-component-update"),
        *("--disable-background-networking", "--force-device-scale-factor=1", "--force-color-profile=srgb"),
        *("--window-size=500,400", "--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0"),
        *(f"--user-data-dir={path.with_suffix('.profile')}", f"--screenshot={shot}"),
    ]
    command = [browser(), *flags, f"{path.as_uri()}#{address}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert shot.is_file(), result.stderr
    said = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return np.asarray(image.open(shot).convert("RGB")).astype(int), said


def fraction(picture: np.ndarray, color: tuple[int, int, int]) -> float:
    """Fraction of the pixels that have a color, within one step of 255."""
    return float((np.abs(picture - color).max(2) <= 1).mean())


@pytest.fixture(scope="module")
def plates(tmp_path_factory) -> Path:
    """A plate that is red and green; coarser, it is blue and looks up. The console says one thing."""
    fine = Grid.full(0, (8, 8, 1))
    half = (fine.ijk[:, 0] < 4)[:, None]
    colors = torch.where(half, torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))
    coarse = fine.coarsen((4, 8, 1)).crop(0, (1, 1, 1))
    up = {"color": torch.tensor([[0.0, 0, 1]]), "normal": torch.tensor([[0.0, 0, 1]])}
    path = tmp_path_factory.mktemp("pages") / "plates.html"
    show_html({"other": ONE, "plate": [Voxels(coarse, up), Voxels(fine, {"color": colors})]}, path, title=NASTY)
    with path.open("a") as file:
        file.write("<script>console.error('this is said')</script>")
    return path


def test_a_browser_shows_a_level(plates) -> None:
    """From above, and upper sides are in full light: pixels have the colors of voxels, but for lines and words."""
    shown, said = picture(plates, "shape=plate&level=1&color=color&view=0,89.9")
    assert fraction(shown, (255, 255, 255)) > 0.3
    assert 0.05 < fraction(shown, (255, 0, 0)) == pytest.approx(fraction(shown, (0, 255, 0)), rel=0.2)
    assert fraction(shown, (0, 0, 255)) == 0
    rows, _ = np.nonzero(np.abs(shown - (255, 0, 0)).max(2) <= 1)
    below, _ = np.nonzero(np.abs(shown - (0, 255, 0)).max(2) <= 1)
    assert rows.max() < below.min(), "axis i points down where azimuth is 0"
    assert len(said) == 1
    assert "this is said" in said[0]


def test_a_browser_shows_another_level_in_other_colors(plates) -> None:
    """A normal that points up is (0.5, 0.5, 1) as a color; half of the plate is left."""
    shown, said = picture(plates, "shape=plate&level=0&color=normal&background=dark&view=0,89.9")
    assert fraction(shown, (0x16, 0x18, 0x1C)) > 0.4
    assert fraction(shown, (128, 128, 255)) > 0.05
    assert fraction(shown, (255, 0, 0)) == fraction(shown, (0, 255, 0)) == fraction(shown, (255, 255, 255)) == 0
    assert len(said) == 1
