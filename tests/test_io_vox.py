"""MagicaVoxel files: written ones are read back, and files made here byte by byte are read as the format says."""

import contextlib
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, Voxels
from sparsevox.io import load_voxels, save_voxels

Voxel = tuple[int, int, int]


def chunk(name: str, content: bytes) -> bytes:
    return name.encode() + struct.pack("<2i", len(content), 0) + content


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def table(**words: str) -> bytes:
    pairs = [each.encode() for pair in words.items() for each in pair]
    return numbers(len(words)) + b"".join(numbers(len(word)) + word for word in pairs)


def model(size: Voxel, voxels: dict[Voxel, int]) -> bytes:
    rows = b"".join(bytes((*voxel, color)) for voxel, color in voxels.items())
    return chunk("SIZE", numbers(*size)) + chunk("XYZI", numbers(len(voxels)) + rows)


def transform(number: int, child: int, layer: int = -1, hidden: str = "0", **frame: str) -> bytes:
    return chunk("nTRN", numbers(number) + table(_hidden=hidden) + numbers(child, -1, layer, 1) + table(**frame))


def group(number: int, *children: int) -> bytes:
    return chunk("nGRP", numbers(number) + table() + numbers(len(children), *children))


def shape(number: int, *models: int) -> bytes:
    return chunk(
        "nSHP", numbers(number) + table() + numbers(len(models)) + b"".join(numbers(m) + table() for m in models)
    )


def file(folder: Path, *chunks: bytes) -> Path:
    inner = b"".join(chunks)
    path = folder / "scene.vox"
    path.write_bytes(b"VOX " + numbers(150) + b"MAIN" + numbers(0, len(inner)) + inner)
    return path


def found(voxels: Voxels, batch: int = 0) -> dict[Voxel, tuple[int, ...]]:
    """The bytes of the colors by voxel."""
    colors = (voxels.attributes["color"] * 255).round().int().tolist()
    rows = zip(voxels.grid.coords.tolist(), colors, strict=True)
    return {(x, y, z): tuple(color) for (b, x, y, z), color in rows if b == batch}


coordinates = st.tuples(*[st.integers(-300, 300)] * 3)


@settings(max_examples=30)
@given(st.dictionaries(coordinates, st.tuples(*[st.integers(0, 255)] * 3), max_size=40))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, colors: dict[Voxel, Voxel]) -> None:
    path = tmp_path_factory.mktemp("vox") / "shape.vox"
    grid = Grid.from_coords(torch.tensor(list(colors), dtype=torch.int32).reshape(-1, 3), batch_size=1)
    known = [colors[(x, y, z)] for x, y, z in grid.ijk.tolist()]
    save_voxels(Voxels(grid, {"color": torch.tensor(known).reshape(-1, 3) / 255}), path)
    loaded = load_voxels(path, voxel_size=0.5, origin=0.25)
    assert found(loaded) == colors
    assert loaded.batch_size == 1
    assert (loaded.grid.voxel_size, loaded.grid.origin) == ((0.5,) * 3, (0.25,) * 3)


def test_a_small_shape_is_one_model(tmp_path: Path) -> None:
    """So that it can be painted as one."""
    grid = Grid.from_coords(torch.tensor([[-128, -1, -200], [127, 0, 55]]))
    save_voxels(Voxels(grid), tmp_path / "shape.vox")
    data = (tmp_path / "shape.vox").read_bytes()
    assert data.count(b"SIZE" + numbers(12, 0, 256, 2, 256)) == data.count(b"XYZI") == 1
    assert found(load_voxels(tmp_path / "shape.vox")) == {(-128, -1, -200): (190,) * 3, (127, 0, 55): (190,) * 3}


def test_many_colors_are_rounded(tmp_path: Path) -> None:
    axis = torch.arange(10)
    grid = Grid.from_coords(torch.cartesian_prod(axis, axis, axis))
    color = grid.ijk / 9
    save_voxels(Voxels(grid, {"color": color}), tmp_path / "shape.vox")
    loaded = load_voxels(tmp_path / "shape.vox").attributes["color"]
    assert len(loaded.unique(dim=0)) == 64  # two bits per channel
    assert float((loaded - color).abs().max()) <= 1 / 6 + 1e-6


def test_models_without_a_scene(tmp_path: Path) -> None:
    """The colors are those of the default palette, of which some are known."""
    one = model((3, 4, 5), {(2, 3, 4): 1, (0, 0, 0): 2, (1, 0, 0): 6, (0, 1, 0): 36})
    path = file(tmp_path, one)
    assert found(load_voxels(path)) == {
        (2, 3, 4): (255, 255, 255),
        (0, 0, 0): (255, 255, 204),
        (1, 0, 0): (255, 255, 0),
        (0, 1, 0): (255, 0, 0),
    }
    ends = model((1, 1, 1), {(0, 0, 0): 215}), model((2, 1, 1), {(0, 0, 0): 216, (1, 0, 0): 255})
    two = load_voxels(file(tmp_path, chunk("PACK", numbers(2)), *ends))
    assert [found(two, 0), found(two, 1)] == [
        {(0, 0, 0): (0, 0, 51)},
        {(0, 0, 0): (238, 0, 0), (1, 0, 0): (17, 17, 17)},
    ]


PALETTE = chunk("RGBA", b"".join(bytes((n, 255 - n, 7, 255)) for n in range(1, 257 - 1)) + bytes(4))


def test_models_are_where_the_scene_places_them(tmp_path: Path) -> None:
    bar = model((4, 1, 1), {(x, 0, 0): x + 1 for x in range(4)})
    dot = model((1, 1, 1), {(0, 0, 0): 9})
    # x' = -y, y' = x, z' = z: columns 1, 0, 2, and a negative first row.
    quarter = str(1 | 0 << 2 | 1 << 4)
    scene = [
        transform(0, 1, _t="100 0 0"),
        group(1, 2, 4, 6),
        transform(2, 3, _t="0 0 10"),
        shape(3, 0),
        transform(4, 5, _r=quarter, _t="0 20 0"),
        shape(5, 0, 1),  # the second is another frame
        transform(6, 7, _r=quarter),
        group(7, 8),
        transform(8, 9, _t="5 0 0"),
        shape(9, 1),
    ]
    loaded = found(load_voxels(file(tmp_path, bar, dot, *scene, PALETTE, chunk("MATL", b"any"))))
    color = {n: (n, 255 - n, 7) for n in range(1, 10)}
    straight = {(98 + x, 0, 10): color[x + 1] for x in range(4)}
    # The center of the bar, between its second and third voxel, stays; its y extent [0, 1) becomes x in [-1, 0).
    turned = {(99, 18 + x, 0): color[x + 1] for x in range(4)}
    assert loaded == straight | turned | {(99, 5, 0): color[9]}


def test_all_rotations(tmp_path: Path) -> None:
    corner = model((2, 2, 2), {(1, 0, 1): 1})
    for columns in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for signs in product((1, -1), repeat=3):
            code = columns[0] | columns[1] << 2 | sum((sign < 0) << (4 + row) for row, sign in enumerate(signs))
            loaded = load_voxels(file(tmp_path, corner, transform(0, 1, _r=str(code)), shape(1, 0)))
            centers = np.array([0.5, -0.5, 0.5])  # about the center of the model
            expected = tuple(int(np.floor(sign * centers[c])) for c, sign in zip(columns, signs, strict=True))
            assert list(found(loaded)) == [expected]


def test_hidden_parts_are_left_out_and_the_first_of_two_voxels_counts(tmp_path: Path) -> None:
    dots = [model((1, 1, 1), {(0, 0, 0): color}) for color in (1, 2, 3, 4)]
    layer = chunk("LAYR", numbers(3) + table(_hidden="1") + numbers(-1))
    scene = [
        group(0, 1, 3, 5, 7),
        transform(1, 2, hidden="1"),
        shape(2, 0),
        transform(3, 4, layer=3),
        shape(4, 1),
        transform(5, 6, layer=0),
        shape(6, 2),
        transform(7, 8),
        shape(8, 3),
    ]
    assert found(load_voxels(file(tmp_path, *dots, *scene, layer, PALETTE))) == {(0, 0, 0): (3, 252, 7)}


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([chunk("SIZE", numbers(1, 1, 1))], "1 sizes of 0 models"),
        ([model((1, 1, 1), {(0, 0, 0): 0})], "a voxel has the color 0"),
        ([transform(0, 7)], "there is no node 7"),
        ([shape(0, 0)], "there is no model 0"),
        ([transform(0, 1), group(1, 0)], "the scene has no root"),
        ([group(5, 0), transform(0, 1), group(1, 0)], "the scene has no end"),
        ([group(0), group(0)], "node 0 occurs twice"),
        ([model((1, 1, 1), {}), transform(0, 1, _r="5"), shape(1, 0)], "5 is no rotation"),
        ([model((1, 1, 1), {}), transform(0, 1, _t="1 2"), shape(1, 0)], "a translation has 2 numbers"),
        ([model((1, 1, 1), {}), transform(0, 1, _t="1 2 x"), shape(1, 0)], "'x' is no integer"),
        ([transform(0, 1, _t="1 2 99999999"), group(1)], "coordinates must lie within"),
        ([chunk("RGBA", b"short")], "1024 bytes must follow, got 5"),
        ([chunk("XYZI", numbers(-1))], "-4 bytes must follow"),
    ],
)
def test_damaged_files(tmp_path: Path, chunks: list[bytes], message: str) -> None:
    with pytest.raises(ValueError, match=rf"scene\.vox: .*{message}"):
        load_voxels(file(tmp_path, *chunks))


def test_other_files_and_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scene.vox"
    path.write_bytes(b"PLY scene")
    with pytest.raises(ValueError, match="must begin with 'VOX '"):
        load_voxels(path)
    path.write_bytes(b"VOX " + numbers(150) + chunk("SIZE", b""))
    with pytest.raises(ValueError, match="no MAIN chunk"):
        load_voxels(path)
    grid = Grid.from_coords(torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0]]))
    with pytest.raises(ValueError, match=r"voxels must be one grid for a \.vox file, got a batch of 2"):
        save_voxels(Voxels(grid), path)
    for color, message in (
        (torch.full((1, 3), 1.5), r"color must lie in \[0, 1\], got 1.5 to 1.5"),
        (torch.full((1, 3), torch.nan), r"color must lie in \[0, 1\], got nan"),
        (torch.zeros(1, 4), r"color must be floats of shape \[1, 3\], got torch.float32 \[1, 4\]"),
        (torch.zeros(1, 3, dtype=torch.uint8), r"color must be floats of shape \[1, 3\], got torch.uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            save_voxels(Voxels(Grid.from_coords(torch.zeros(1, 3, dtype=torch.int32)), {"color": color}), path)
    assert path.read_bytes().startswith(b"VOX ")


@settings(max_examples=200)
@given(st.data())
def test_changed_bytes_give_voxels_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("vox")
    scene = [transform(0, 1, _r="4", _t="3 4 5"), group(1, 2), transform(2, 3), shape(3, 0)]
    good = file(folder, model((3, 2, 1), {(0, 0, 0): 1, (2, 1, 0): 2}), *scene, PALETTE).read_bytes()
    damaged = bytearray(good[: data.draw(st.integers(1, len(good)))])
    for place in data.draw(st.lists(st.integers(0, min(len(damaged), 250) - 1), max_size=3)):
        damaged[place] = data.draw(st.integers(0, 255))
    (folder / "scene.vox").write_bytes(bytes(damaged))
    with contextlib.suppress(ValueError):
        loaded = load_voxels(folder / "scene.vox")
        assert loaded.num_voxels <= 2
        assert set(loaded.attributes) == {"color"}
