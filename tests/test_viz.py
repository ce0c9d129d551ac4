"""Pictures, against ray casting and Python sets. How they look is for people to judge."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given

from sparsevox import Grid, Mesh
from sparsevox.testing import VoxelSet, as_coords, voxel_sets
from sparsevox.viz import DIRECTIONS, MARGIN, exposed_faces, render_png, render_row

Image = pytest.importorskip("PIL.Image", reason="needs the extra viz")
pytest.importorskip("matplotlib", reason="needs the extra viz")

NOTHING = Grid.empty()
ONE = Grid.full(0, 1)
SCATTERED = Grid.from_coords(torch.randint(-4, 5, (60, 3), generator=torch.Generator().manual_seed(1)))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def drawn(picture: np.ndarray) -> tuple[int, int]:
    """Width and height of what is not white."""
    rows, columns = np.nonzero((picture < 250).any(2))
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


@given(data=voxel_sets())
def test_exposed_faces(data: VoxelSet) -> None:
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size)
    rows, sides = exposed_faces(grid)
    coords = grid.coords.tolist()
    actual = [(*coords[row], *DIRECTIONS[side]) for row, side in zip(rows.tolist(), sides.tolist(), strict=True)]
    expected = {
        (b, i, j, k, *d)
        for b, i, j, k in data.voxels
        for d in DIRECTIONS
        if (b, i + d[0], j + d[1], k + d[2]) not in data.voxels
    }
    assert len(actual) == len(expected)
    assert set(actual) == expected


def first_hits(grid: Grid, origins: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Row of the first voxel on each ray from far away, -1 where there is none: slabs, for every ray and voxel."""
    centers = grid.to_world(grid.ijk).double().numpy()
    half = np.array(grid.voxel_size) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.stack([(centers + s * half - origins[:, None]) / direction for s in (-1, 1)])
    enter, leave = bounds.min(0).max(2), bounds.max(0).min(2)  # [rays, N]
    enter = np.where(enter < leave, enter, np.inf)
    return np.where(np.isfinite(enter.min(1)), enter.argmin(1), -1)


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize(("azimuth", "elevation"), [(35, 30), (200, 10), (-80, -50), (130, 75), (301, -5)])
def test_a_pixel_shows_the_first_voxel_on_its_ray(azimuth, elevation, size, tmp_path) -> None:
    grid = Grid.from_coords(SCATTERED.ijk, voxel_size=size, origin=(3.0, -2.0, 7.0))
    generator = torch.Generator().manual_seed(2)
    channel = torch.randint(0, 3, (grid.num_voxels,), generator=generator)
    colors = torch.nn.functional.one_hot(channel, 3).double()
    render_png(grid, tmp_path / "a.png", colors=colors, width=400, azimuth=azimuth, elevation=elevation)
    picture = pixels(tmp_path / "a.png")

    a, e = np.radians(azimuth), np.radians(elevation)
    toward = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.cross([0, 0, 1], toward) / np.cos(e)
    up = np.cross(toward, right)
    corners = grid.to_world(grid.ijk).double().numpy()[:, None] + np.array(
        [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
    ) * np.array(size)
    plane = np.stack([corners @ right, corners @ up])
    low, high = plane.min((1, 2)), plane.max((1, 2))
    scale = 400 * (1 - 2 * MARGIN) / (high - low).max()

    height = picture.shape[0]
    rows, columns = np.mgrid[2 : height - 2 : 7, 2:398:7].reshape(2, -1)

    def hits(dx: float, dy: float) -> np.ndarray:
        x = (columns + 0.5 + dx - 200) / scale + (low + high)[0] / 2
        y = (height / 2 - rows - 0.5 - dy) / scale + (low + high)[1] / 2
        return first_hits(grid, x[:, None] * right + y[:, None] * up + 1000 * toward, -toward)

    middle = hits(0, 0)
    # A line between voxels is half a pixel wide, and sizes in pixels are whole.
    clear = np.all([hits(dx, dy) == middle for dx in range(-2, 3) for dy in range(-2, 3)], axis=0)
    seen = picture[rows, columns]
    assert clear.sum() > 400
    assert (seen[clear & (middle < 0)] == 255).all()
    hit = clear & (middle >= 0)
    assert hit.sum() > 100
    assert (seen[hit].argmax(1) == channel.numpy()[middle[hit]]).all()
    assert (np.sort(seen[hit], axis=1)[:, :2] == 0).all()


def test_along_an_axis_one_side_shows(tmp_path) -> None:
    for azimuth, elevation in ((0, 0), (90, 0), (180, 0), (0, 90), (0, -90)):
        render_png(ONE, tmp_path / "a.png", azimuth=azimuth, elevation=elevation, width=100)
        assert drawn(pixels(tmp_path / "a.png")) == (93, 93)  # 92 and half a line on each side


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1, 4), (47, 185)), ((1, 4, 1), (185, 47)), ((4, 1, 1), (185, 185))]
)
def test_the_voxel_size_shows(size, expected, tmp_path) -> None:
    render_png(Grid.full(0, 2, voxel_size=size), tmp_path / "a.png", azimuth=0, elevation=0, width=200)
    actual = drawn(pixels(tmp_path / "a.png"))
    assert max(abs(a - b) for a, b in zip(actual, expected, strict=True)) <= 1


def test_size_and_background(tmp_path) -> None:
    render_png(Grid.full(0, (1, 9, 2)), tmp_path / "a.png", width=333, background="#102030")
    picture = pixels(tmp_path / "a.png")
    assert picture.shape[1] == 333
    assert picture.shape[0] < 333
    assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] == (16, 32, 48)).all()


def test_an_empty_grid_gives_a_picture(tmp_path) -> None:
    render_png(NOTHING, tmp_path / "a.png", colors=torch.zeros(0, 3), width=64)
    assert (pixels(tmp_path / "a.png") == 255).all()


def test_colors_by_height(tmp_path) -> None:
    """Two levels, seen from above: blue below, orange above."""
    render_png(
        Grid.full(0, (8, 8, 1)) | Grid.full(0, (8, 4, 9)),
        tmp_path / "a.png",
        elevation=90,
        azimuth=0,
        width=100,
    )
    picture = pixels(tmp_path / "a.png")[50]
    low, high = picture[75], picture[25]
    assert low.argmax() == 2
    assert high.argmax() == 0


def test_light(tmp_path) -> None:
    """From above: a floor is white, and darker at a pillar. From a corner: three sides, the upper one brightest."""
    pillar = Grid.full((2, 2, 0), (3, 3, 4))
    floor = Grid.full(0, (5, 5, 1)) | pillar
    white = torch.ones(floor.num_voxels, 3)
    render_png(floor, tmp_path / "a.png", colors=white, elevation=90, azimuth=0, width=100)
    row = pixels(tmp_path / "a.png")[50, :, 1]
    assert row[13] == row[87] == 255 == row[50]
    assert row[31] == row[69] < 255

    render_png(ONE, tmp_path / "b.png", colors=white[:1], azimuth=40, width=100)
    picture = pixels(tmp_path / "b.png")[:, :, 1]
    middle = picture.shape[0] // 2
    left, right, top = picture[middle + 20, 30], picture[middle + 20, 80], picture[20, 50]
    assert top > max(left, right)
    assert left != right


def test_an_item_of_a_batch_is_drawn_like_a_grid_of_its_own(tmp_path) -> None:
    batch = Grid.stack([ONE, SCATTERED, NOTHING])
    colors = torch.rand(batch.num_voxels, 3, generator=torch.Generator().manual_seed(3))
    for item, grid in enumerate(batch):
        first, last = batch.offsets[item : item + 2].tolist()
        render_png(batch, tmp_path / "a.png", batch_item=item, colors=colors, width=90)
        render_png(grid, tmp_path / "b.png", colors=colors[first:last], width=90)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_same_picture_twice(tmp_path) -> None:
    for name in "ab":
        render_png(SCATTERED, tmp_path / name, width=150, palette=32)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(np.unique(pixels(tmp_path / "a").reshape(-1, 3), axis=0)) <= 32


def test_a_row_has_one_scale_and_titles_on_top(tmp_path) -> None:
    row = [Grid.full(0, 4), Grid.full(0, 2), Grid.full(0, 2).subdivide(2), NOTHING]
    render_row(row, tmp_path / "a.png", width=800, azimuth=0, elevation=0)
    picture = pixels(tmp_path / "a.png")
    assert [drawn(tile)[0] for tile in np.split(picture[:, :600], 3, axis=1)] == [185, 93, 93]
    assert (picture[:, 600:] == 255).all()

    render_row(Grid.stack(row[:2]), tmp_path / "b.png", width=400, titles=["one", "two"], azimuth=0, elevation=0)
    below = pixels(tmp_path / "b.png")
    head = below.shape[0] - picture.shape[0]
    assert head >= 16
    assert (below[head:] == picture[:, :400]).all()
    assert (below[:head] < 128).any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 10}, ValueError, "width must be between 16 and 8192 pixels, got 10"),
        ({"width": 800.0}, TypeError, "width must be an int, got 800.0"),
        ({"azimuth": "x"}, TypeError, "azimuth must be a number of degrees, got 'x'"),
        ({"azimuth": float("nan")}, ValueError, "azimuth must be between -360 and 360 degrees, got nan"),
        ({"elevation": 91}, ValueError, "elevation must be between -90 and 90 degrees, got 91"),
        ({"palette": 257}, ValueError, "palette must be between 2 and 256 colors, got 257"),
        ({"batch_item": 1}, ValueError, r"batch_item must be in \[0, 1\), got 1"),
        ({"batch_item": True}, TypeError, "batch_item must be an int, got True"),
        ({"colors": [[0, 0, 0]]}, TypeError, "colors must be a torch.Tensor, got list"),
        (
            {"colors": torch.zeros(1, 3).int()},
            TypeError,
            "colors must hold floating-point numbers, got torch.int32",
        ),
        ({"colors": torch.zeros(2, 3)}, ValueError, r"colors must have shape \[1, 3\], got \[2, 3\]"),
        ({"colors": torch.tensor([[0, 2.0, 0]])}, ValueError, r"colors\[0\] = \(0.0, 2.0, 0.0\)"),
        ({"colors": torch.tensor([[0, 0, float("nan")]])}, ValueError, r"colors must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments(arguments, error, message, tmp_path) -> None:
    with pytest.raises(error, match=message):
        render_png(ONE, tmp_path / "a.png", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("grids", "arguments", "message"),
    [
        ([], {}, "grids must hold at least one grid, got none"),
        ([Grid.empty(2)], {}, r"grids\[0\] must be one grid, got a batch of 2"),
        ([ONE], {"titles": ["a", "b"]}, "titles must have one entry per grid, 1, got 2"),
        ([ONE], {"colors": []}, "colors must have one entry per grid, 1, got 0"),
        (
            [ONE, ONE],
            {"colors": [None, torch.ones(2, 3)]},
            r"colors\[1\] must have shape \[1, 3\], got \[2, 3\]",
        ),
    ],
)
def test_bad_rows(grids, arguments, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        render_row(grids, tmp_path / "a.png", **arguments)


def square(color: tuple[float, float, float], height: float) -> Mesh:
    corners = torch.tensor([[-1.0, -1, height], [1, -1, height], [1, 1, height], [-1, 1, height]])
    colors = torch.tensor([color] * 4)
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), {"color": colors})


def test_the_nearer_of_two_triangles_is_drawn(tmp_path: Path) -> None:
    red, blue = square((1.0, 0.0, 0.0), 0.0), square((0.0, 0.0, 1.0), 1.0)
    for order in ([red, blue], [blue, red]):
        both = Mesh(
            torch.cat([m.vertices for m in order]),
            torch.cat([order[0].faces, order[1].faces + 4]),
            {"color": torch.cat([m.vertex_attributes["color"] for m in order])},
        )
        for elevation, nearer in ((90.0, 2), (-90.0, 0)):
            render_row([both], tmp_path / "a.png", width=64, elevation=elevation)
            middle = pixels(tmp_path / "a.png")[30:34, 30:34].reshape(-1, 3)
            assert set(middle.argmax(1)) == {nearer}


def test_meshes_and_grids_share_a_scale(tmp_path: Path) -> None:
    cube = Grid.full(0, 2)
    mesh = square((0.2, 0.2, 0.2), 0.0)
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    render_row([cube, mesh, empty], tmp_path / "a.png", width=300, azimuth=0.0, elevation=90.0)
    picture = pixels(tmp_path / "a.png")
    (w1, h1), (w2, h2) = drawn(picture[:, :100]), drawn(picture[:, 100:200])
    assert abs(w1 - w2) <= 2
    assert abs(h1 - h2) <= 2
    assert (picture[:, 200:] == 255).all()
    with pytest.raises(ValueError, match=r"colors\[1\] must have shape \[4, 3\]"):
        render_row([cube, mesh], tmp_path / "b.png", colors=[None, torch.zeros(5, 3)])


def test_matplotlib_is_imported_by_drawing_and_pyplot_never(tmp_path) -> None:
    code = (
        "import sys, sparsevox as sv\n"
        "from sparsevox.viz import exposed_faces, render_png\n"
        "grid = sv.Grid.full(0, 2)\n"
        "exposed_faces(grid)\n"
        "assert 'matplotlib' not in sys.modules and 'PIL' not in sys.modules\n"
        f"render_png(grid, {str(tmp_path / 'a.png')!r}, width=32)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'sparsevox\[viz\]'"):
        render_png(ONE, tmp_path / "a.png")
