"""Bad input: the exception, and a message that names the argument, what was expected and what came."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, _readback
from sparsevox.testing import LIMIT

COORDS = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [1, -4, 5, 6]])
POINTS = torch.tensor([[0.0, 0.5, 1.0], [2.0, -2.0, 0.0]])
VERTICES = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
FACES = torch.tensor([[0, 1, 2], [2, 1, 0]])
MASK = torch.ones(1, 2, 2, 2, dtype=torch.bool)
NAN, INF = float("nan"), float("inf")
RANGE = r"[-131072, 131071]"


def a_grid() -> Grid:
    return Grid.from_coords(COORDS, batch_size=2)


def at(*ijk: int) -> Grid:
    return Grid.from_coords(torch.tensor([[0, 0, 0], list(ijk)]))


def put(like: Tensor, row: int, column: int, value: float) -> Tensor:
    result = like.clone()
    result[row, column] = value
    return result


def from_coords(value: Any, **kwargs: Any) -> Callable[[Grid], object]:
    return lambda _: Grid.from_coords(value, **kwargs)


def from_points(value: Any, *batch: Any, voxel_size: Any = 1.0, **kwargs: Any) -> Callable[[Grid], object]:
    return lambda _: Grid.from_points(value, *batch, voxel_size=voxel_size, **kwargs)


def from_mesh(vertices: Any, faces: Any, **kwargs: Any) -> Callable[[Grid], object]:
    return lambda _: Grid.from_mesh(vertices, faces, **{"voxel_size": 0.5, **kwargs})


def from_dense(mask: Any, **kwargs: Any) -> Callable[[Grid], object]:
    return lambda _: Grid.from_dense(mask, **kwargs)


def full(lower: Any, upper: Any, **kwargs: Any) -> Callable[[Grid], object]:
    return lambda _: Grid.full(lower, upper, **kwargs)


def bools(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


class Bad(NamedTuple):
    """A call that must fail, with parts of its message."""

    name: str
    call: Callable[[Grid], object]
    error: type[Exception]
    parts: tuple[str, ...]


CONSTRUCTION = [
    Bad("list", from_coords([[0, 0, 0, 0]]), TypeError, ("coords", "torch.Tensor", "list")),
    Bad("float coords", from_coords(COORDS.float()), TypeError, ("coords", "integers", "float32")),
    Bad("bool coords", from_coords(COORDS.bool()), TypeError, ("coords", "integers", "bool")),
    Bad("two columns", from_coords(COORDS[:, :2]), ValueError, ("coords", "[M, 4] or [M, 3]", "[3, 2]")),
    Bad("five columns", from_coords(torch.zeros(3, 5).long()), ValueError, ("coords", "[M, 4]", "[3, 5]")),
    Bad("one axis", from_coords(COORDS[0]), ValueError, ("coords", "[M, 4]", "[4]")),
    Bad("three axes", from_coords(COORDS[None]), ValueError, ("coords", "[M, 4]", "[1, 3, 4]")),
    *[
        Bad(
            f"{value} in column {column}",
            from_coords(put(COORDS, 1, column, value), batch_size=batch_size),
            ValueError,
            (
                "coords[1]",
                str(value),
                "out of range",
                "[-131072, 131071]",
                "2^17",
                f"[0, {batch_size or 1024})",
            ),
        )
        for value in (LIMIT, -LIMIT - 1, 1 << 40, -(1 << 63))
        for column in (1, 2, 3)
        for batch_size in (None, 5)
    ],
    Bad(
        "the first offender of several",
        from_coords(torch.tensor([[0, 0, 0], [0, LIMIT, 0], [0, 0, -LIMIT - 7]])),
        ValueError,
        ("coords[1] = (0, 0, 131072, 0)",),
    ),
    Bad(
        "negative batch index",
        from_coords(put(COORDS, 2, 0, -1)),
        ValueError,
        ("coords[2]", "-1", "[0, 1024)"),
    ),
    Bad(
        "batch index 1024",
        from_coords(put(COORDS, 2, 0, 1024)),
        ValueError,
        ("coords[2]", "1024", "[0, 1024)"),
    ),
    Bad(
        "batch index past the size",
        from_coords(COORDS, batch_size=1),
        ValueError,
        ("coords[2]", "(1, ", "[0, 1)"),
    ),
    Bad("coords without a batch", from_coords(COORDS, batch_size=0), ValueError, ("coords[0]", "[0, 0)")),
    *[
        Bad(f"batch size {value!r} of {name}", call, error, ("batch_size", str(value), *parts))
        for value, error, parts in (
            (-1, ValueError, ("between 0 and 1024",)),
            (1025, ValueError, ("between 0 and 1024",)),
            (1.0, TypeError, ("int",)),
            (True, TypeError, ("int",)),
        )
        for name, call in (
            ("from_coords", from_coords(COORDS, batch_size=value)),
            ("from_points", from_points(POINTS, batch_size=value)),
            ("full", full(0, 1, batch_size=value)),
            ("empty", lambda _, value=value: Grid.empty(value)),
        )
    ],
    *[
        Bad(f"{name} with voxel size {value}", call(value), error, ("voxel_size", *parts))
        for value, error, parts in (
            (0.0, ValueError, ("positive", "0.0")),
            (-2.0, ValueError, ("positive", "-2.0")),
            ((1.0, 1.0, -0.5), ValueError, ("positive", "-0.5")),
            (NAN, ValueError, ("finite", "nan")),
            (INF, ValueError, ("finite", "inf")),
            ((1.0, 2.0), ValueError, ("three", "(1.0, 2.0)")),
            ((1.0,) * 4, ValueError, ("three", "1.0, 1.0")),
            ("1", TypeError, ("number", "'1'")),
            (None, TypeError, ("number", "None")),
            (True, TypeError, ("number", "True")),
        )
        for name, call in (
            ("from_coords", lambda v: from_coords(COORDS, voxel_size=v)),
            ("from_points", lambda v: from_points(POINTS, voxel_size=v)),
            ("from_mesh", lambda v: from_mesh(VERTICES, FACES, voxel_size=v)),
            ("from_dense", lambda v: from_dense(MASK, voxel_size=v)),
            ("full", lambda v: full(0, 1, voxel_size=v)),
            ("empty", lambda v: lambda _: Grid.empty(voxel_size=v)),
        )
    ],
    Bad("origin NaN", from_coords(COORDS, origin=(0, NAN, 0)), ValueError, ("origin", "finite", "nan")),
    Bad("origin of two", from_coords(COORDS, origin=(0, 0)), ValueError, ("origin", "three", "(0, 0)")),
    Bad("origin text", from_coords(COORDS, origin="zero"), TypeError, ("origin", "number", "zero")),
    Bad("points list", from_points([[0.0, 0.0, 0.0]]), TypeError, ("points", "torch.Tensor", "list")),
    Bad("integer points", from_points(POINTS.long()), TypeError, ("points", "floating-point", "int64")),
    Bad("points of two columns", from_points(POINTS[:, :2]), ValueError, ("points", "[P, 3]", "[2, 2]")),
    *[
        Bad(f"point {value}, {mode}", from_points(put(POINTS, 1, 2, value), mode=mode), ValueError, parts)
        for mode in ("containing", "enclosing")
        for value, parts in (
            (NAN, ("points[1]", "finite", "nan")),
            (INF, ("points[1]", "finite", "inf")),
            (-INF, ("points[1]", "finite", "-inf")),
            (2e5, ("points[1]", "200000.0", "[-131072, 131071]")),
            (-1e30, ("points[1]", "e+30", "[-131072, 131071]")),
        )
    ],
    Bad(
        "point whose upper centre is out",
        from_points(put(POINTS, 1, 0, LIMIT - 1), mode="enclosing"),
        ValueError,
        ("points[1]", "131071.0", "[-131072, 131071]"),
    ),
    Bad(
        "mode",
        from_points(POINTS, mode="nearest"),
        ValueError,
        ("mode", "containing", "enclosing", "nearest"),
    ),
    Bad(
        "origin and lower", from_points(POINTS, origin=0.0, lower=0.0), ValueError, ("origin", "lower", "one")
    ),
    Bad("lower NaN", from_points(POINTS, lower=NAN), ValueError, ("lower", "finite", "nan")),
    Bad("batch too short", from_points(POINTS, torch.zeros(1).long()), ValueError, ("batch", "[2]", "[1]")),
    Bad(
        "batch of two axes",
        from_points(POINTS, torch.zeros(2, 1).long()),
        ValueError,
        ("batch", "[2]", "[2, 1]"),
    ),
    Bad("float batch", from_points(POINTS, torch.zeros(2)), TypeError, ("batch", "integers", "float32")),
    Bad("list batch", from_points(POINTS, [0, 0]), TypeError, ("batch", "torch.Tensor", "list")),
    Bad(
        "negative batch",
        from_points(POINTS, torch.tensor([0, -3])),
        ValueError,
        ("batch[1]", "-3", "[0, 1024)"),
    ),
    Bad(
        "batch past the size",
        from_points(POINTS, torch.tensor([0, 4]), batch_size=4),
        ValueError,
        ("batch[1]", "4", "[0, 4)"),
    ),
    Bad("vertices list", from_mesh([[0.0] * 3] * 3, FACES), TypeError, ("vertices", "torch.Tensor", "list")),
    Bad(
        "integer vertices",
        from_mesh(VERTICES.long(), FACES),
        TypeError,
        ("vertices", "floating-point", "int64"),
    ),
    Bad("flat vertices", from_mesh(VERTICES[:, :2], FACES), ValueError, ("vertices", "[V, 3]", "[3, 2]")),
    Bad("float faces", from_mesh(VERTICES, FACES.float()), TypeError, ("faces", "integers", "float32")),
    Bad("quads", from_mesh(VERTICES, torch.zeros(2, 4).long()), ValueError, ("faces", "[F, 3]", "[2, 4]")),
    Bad(
        "face past the vertices",
        from_mesh(VERTICES, put(FACES, 1, 2, 3)),
        ValueError,
        ("faces[1]", "[0, 3)", "(2, 1, 3)"),
    ),
    Bad("negative face", from_mesh(VERTICES, put(FACES, 0, 1, -1)), ValueError, ("faces[0]", "[0, 3)", "-1")),
    Bad("faces without vertices", from_mesh(VERTICES[:0], FACES), ValueError, ("faces[0]", "[0, 0)")),
    Bad(
        "NaN vertex", from_mesh(put(VERTICES, 2, 1, NAN), FACES), ValueError, ("vertices[2]", "finite", "nan")
    ),
    Bad(
        "infinite vertex",
        from_mesh(put(VERTICES, 1, 0, INF), FACES),
        ValueError,
        ("vertices[1]", "finite", "inf"),
    ),
    Bad(
        "far vertex",
        from_mesh(put(VERTICES, 1, 0, 1e6), FACES),
        ValueError,
        ("vertices[1]", "1000000.0", "[-131072, 131071]"),
    ),
    Bad("integer mask", from_dense(MASK.long()), TypeError, ("mask", "bool", "int64")),
    Bad("mask of three axes", from_dense(MASK[0]), ValueError, ("mask", "[B, X, Y, Z]", "[2, 2, 2]")),
    Bad("mask list", from_dense([[[[True]]]]), TypeError, ("mask", "torch.Tensor", "list")),
    Bad("mask of 1025 items", from_dense(bools(1025, 1, 1, 1)), ValueError, ("batch_size", "1024", "1025")),
    Bad("volume above the range", from_dense(MASK, lower=LIMIT - 1), ValueError, ("lower", "131072", RANGE)),
    Bad(
        "volume below the range",
        from_dense(MASK, lower=(0, 0, -LIMIT - 1)),
        ValueError,
        ("lower", "-131073", RANGE),
    ),
    Bad("float lower", from_dense(MASK, lower=0.5), TypeError, ("lower", "int", "0.5")),
    Bad("lower of two", from_dense(MASK, lower=(0, 0)), ValueError, ("lower", "three", "(0, 0)")),
    Bad("box upside down", full(1, (2, 0, 2)), ValueError, ("lower", "upper", "(1, 1, 1)", "(2, 0, 2)")),
    Bad("box above the range", full(0, (1, 1, LIMIT + 1)), ValueError, ("upper", "131073", RANGE)),
    Bad("box below the range", full((-LIMIT - 1, 0, 0), 1), ValueError, ("lower", "-131073", RANGE)),
    Bad("2^31 voxels", full(0, (1 << 11, 1 << 10, 1 << 10)), ValueError, ("2147483647", "2147483648")),
    Bad("all voxels", full(-LIMIT, LIMIT), ValueError, ("2147483647", str(1 << 54))),
    Bad("2^31 voxels in a batch", full(0, 128, batch_size=1024), ValueError, ("2147483647", "2147483648")),
    Bad("float box", full(0.0, 1), TypeError, ("lower", "int", "0.0")),
    Bad("stack of none", lambda _: Grid.stack([]), ValueError, ("grids", "one", "none")),
    Bad("stack of others", lambda g: Grid.stack([g, 3]), TypeError, ("grids[1]", "Grid", "int")),  # type: ignore[list-item]
    Bad(
        "stack of 1025", lambda _: Grid.stack([Grid.empty(1024), Grid.empty(1)]), ValueError, ("1024", "1025")
    ),
    Bad(
        "stack of two sizes",
        lambda _: Grid.stack([Grid.empty(), Grid.empty(voxel_size=2)]),
        ValueError,
        ("grids[0]", "grids[1]", "voxel_size", "1.0", "2.0"),
    ),
    Bad(
        "stack of two origins",
        lambda _: Grid.stack([Grid.empty(), Grid.empty(), Grid.empty(origin=1e-4)]),
        ValueError,
        ("grids[0]", "grids[2]", "origin", "0.0", "0.0001"),
    ),
]

USE = [
    *[
        Bad(
            f"coarsen by {value!r}",
            lambda g, value=value: g.coarsen(value),
            error,
            ("factor", str(value), *parts),
        )
        for value, error, parts in (
            (0, ValueError, ("between 1 and 262144",)),
            (-2, ValueError, ("between 1 and 262144",)),
            ((2, 2, 0), ValueError, ("between 1 and 262144",)),
            ((1 << 18) + 1, ValueError, ("between 1 and 262144",)),
            (2.0, TypeError, ("int",)),
            (True, TypeError, ("int",)),
            ("2", TypeError, ("int",)),
            ((2, 2), ValueError, ("three",)),
        )
    ],
    Bad("subdivide by 0", lambda g: g.subdivide(0), ValueError, ("factor", "0", "between 1 and")),
    Bad("subdivide by 2.0", lambda g: g.subdivide(2.0), TypeError, ("factor", "int", "2.0")),  # type: ignore[arg-type]
    *[
        Bad(
            f"subdivide {ijk} by {factor}",
            lambda _, ijk=ijk, factor=factor: at(*ijk).subdivide(factor),
            ValueError,
            ("factor", str(factor), str((0, *ijk)), RANGE),
        )
        for ijk, factor in (
            ((65536, 0, 0), 2),
            ((5, -65537, 0), 2),
            ((1, 2, 32768), 4),
            ((0, 0, 43691), 3),
            ((-43691, 0, 0), (3, 1, 1)),
            ((1, 1, 1), 1 << 17),
        )
    ],
    Bad("2^31 children", lambda _: Grid.full(0, 2).subdivide(1024), ValueError, ("2147483647", "8589934592")),
    Bad(
        "2^31 children, by coords",
        lambda _: Grid.full(0, 2).subdivide((1024, 1024, 513)),
        ValueError,
        ("2147483647", "(1024, 1024, 513)"),
    ),
    *[
        Bad(f"{name} with {what}", lambda g, call=call, mask=mask: call(g, mask), error, ("mask", *parts))
        for name, call, shape in (
            ("prune", lambda g, m: g.prune(m), "[3]"),
            ("subdivide by 2", lambda g, m: g.subdivide(2, m), "[3] or [3, 8]"),
            ("subdivide by 1", lambda g, m: g.subdivide(1, m), "[3]"),
            ("subdivide by 3", lambda g, m: g.subdivide(3, m), "[3]"),
        )
        for what, mask, error, parts in (
            ("a mask too short", bools(2), ValueError, (shape, "[2]")),
            ("a mask too long", bools(4), ValueError, (shape, "[4]")),
            ("a mask of three axes", bools(3, 8, 1), ValueError, (shape, "[3, 8, 1]")),
            ("seven children", bools(3, 7), ValueError, (shape, "[3, 7]")),
            ("an integer mask", torch.ones(3).long(), TypeError, ("bool", "int64")),
            ("a list", [True] * 3, TypeError, ("torch.Tensor", "list")),
        )
    ],
    Bad("children of factor 4", lambda g: g.subdivide(4, bools(3, 8)), ValueError, ("mask", "[3]", "[3, 8]")),
    *[
        Bad(f"{verb} {what}", lambda g, verb=verb, box=box: getattr(g, verb)(**box), error, parts)
        for verb in ("dilate", "erode")
        for what, box, error, parts in (
            ("by -1", {"radius": -1}, ValueError, ("radius", "negative", "-1")),
            ("by (1, -2, 0)", {"radius": (1, -2, 0)}, ValueError, ("radius", "negative", "-2")),
            ("by 0.5", {"radius": 0.5}, TypeError, ("radius", "int", "0.5")),
            ("by True", {"radius": True}, TypeError, ("radius", "int", "True")),
            ("by two", {"radius": (1, 1)}, ValueError, ("radius", "three", "(1, 1)")),
            (
                "upside down",
                {"lower": 1, "upper": (1, 0, 1)},
                ValueError,
                ("lower", "upper", "(1, 1, 1)", "(1, 0, 1)"),
            ),
            ("with lower only", {"lower": -1}, ValueError, ("lower", "upper", "-1", "None")),
            ("with upper only", {"upper": 1}, ValueError, ("lower", "upper", "None", "1")),
            ("by a float bound", {"lower": 0, "upper": 1.5}, TypeError, ("upper", "int", "1.5")),
            ("too far", {"radius": (1 << 18) + 1}, ValueError, ("262144", "262145")),
            ("by an empty stencil", {"stencil": ~bools(3, 3, 3)}, ValueError, ("stencil", "True")),
            ("by a stencil of no size", {"stencil": bools(3, 0, 3)}, ValueError, ("stencil", "True")),
            ("by a flat stencil", {"stencil": bools(3, 3)}, ValueError, ("stencil", "[a, b, c]", "[3, 3]")),
            (
                "by an integer stencil",
                {"stencil": bools(3, 3, 3).long()},
                TypeError,
                ("stencil", "bool", "int64"),
            ),
            (
                "by stencil and radius",
                {"stencil": bools(1, 1, 1), "radius": 2},
                ValueError,
                ("stencil", "box"),
            ),
            (
                "by stencil and box",
                {"stencil": bools(1, 1, 1), "lower": 0, "upper": 1},
                ValueError,
                ("stencil", "box"),
            ),
            (
                "by radius and box",
                {"radius": 3, "lower": 0, "upper": 1},
                ValueError,
                ("radius", "3", "lower"),
            ),
        )
    ],
    *[
        Bad(
            f"dilate {ijk} with {box}",
            lambda _, ijk=ijk, box=box: at(*ijk).dilate(**box),
            ValueError,
            (str((0, *ijk)), RANGE),
        )
        for ijk, box in (
            ((LIMIT - 1, 0, 0), {"radius": 1}),
            ((1, -LIMIT, 2), {"radius": 1}),
            ((0, 7, LIMIT - 6), {"radius": (0, 0, 6)}),
            ((0, 0, LIMIT - 3), {"lower": 3, "upper": 3}),
            ((LIMIT - 1, 0, 0), {"stencil": bools(3, 1, 1)}),
        )
    ],
    Bad("crop upside down", lambda g: g.crop(3, 1), ValueError, ("lower", "upper", "(3, 3, 3)", "(1, 1, 1)")),
    Bad("crop with floats", lambda g: g.crop(0, 1.5), TypeError, ("upper", "int", "1.5")),  # type: ignore[arg-type]
    Bad("crop with None", lambda g: g.crop(None, 1), TypeError, ("lower", "int", "None")),  # type: ignore[arg-type]
    *[
        Bad(
            f"{symbol} {what}",
            lambda g, verb=verb, other=other: getattr(g, verb)(other),
            error,
            (symbol, *parts),
        )
        for symbol, verb in (("|", "__or__"), ("&", "__and__"), ("-", "__sub__"), ("^", "__xor__"))
        for what, other, error, parts in (
            ("a number", 3, TypeError, ("Grid", "int")),
            ("coordinates", COORDS, TypeError, ("Grid", "Tensor")),
            ("another batch size", Grid.empty(3), ValueError, ("batch size", "2", "3")),
            (
                "another voxel size",
                Grid.empty(2, voxel_size=(1, 1, 1.1)),
                ValueError,
                ("voxel_size", "1.0", "1.1"),
            ),
            ("another origin", Grid.empty(2, origin=(0, 2e-5, 0)), ValueError, ("origin", "0.0", "2e-05")),
        )
    ],
    Bad("item 2 of 2", lambda g: g[2], IndexError, ("index", "2", "batch of 2")),
    Bad("item -3 of 2", lambda g: g[-3], IndexError, ("index", "-3", "batch of 2")),
    Bad("item 0.5", lambda g: g[0.5], TypeError, ("index", "int", "0.5")),  # type: ignore[index]
    Bad("item True", lambda g: g[True], TypeError, ("index", "int", "True")),
    Bad("slice of step 2", lambda g: g[::2], ValueError, ("slice", "step 1", "2")),
    *[
        Bad(
            f"{name} {what}",
            lambda g, name=name, value=value: getattr(g, name)(value),
            error,
            ("coords", *parts),
        )
        for name in ("index", "contains")
        for what, value, error, parts in (
            ("floats", COORDS.float(), TypeError, ("integers", "float32")),
            ("a list", [[0, 0, 0]], TypeError, ("torch.Tensor", "list")),
            ("two columns", COORDS[:, :2], ValueError, ("[M, 4] or [M, 3]", "[3, 2]")),
            ("one axis", COORDS[0], ValueError, ("[M, 4]", "[4]")),
        )
    ],
    Bad("to_world of pairs", lambda g: g.to_world(COORDS[:, :2]), ValueError, ("ijk", "[..., 3]", "[3, 2]")),
    Bad("to_world of a number", lambda g: g.to_world(torch.tensor(3)), ValueError, ("ijk", "[..., 3]", "[]")),
    Bad("to_ijk of a list", lambda g: g.to_ijk([0.0] * 3), TypeError, ("xyz", "torch.Tensor", "list")),  # type: ignore[arg-type]
    Bad(
        "nearest to integers",
        lambda g: g.nearest(COORDS[:, 1:]),
        TypeError,
        ("points", "floating-point", "int64"),
    ),
    Bad("nearest to pairs", lambda g: g.nearest(POINTS[:, :2]), ValueError, ("points", "[P, 3]", "[2, 2]")),
    Bad(
        "nearest to NaN",
        lambda g: g.nearest(put(POINTS, 1, 0, NAN)),
        ValueError,
        ("points[1]", "finite", "nan"),
    ),
    Bad(
        "nearest, batch too long",
        lambda g: g.nearest(POINTS, COORDS[:, 0]),
        ValueError,
        ("batch", "[2]", "[3]"),
    ),
    Bad(
        "nearest, float batch",
        lambda g: g.nearest(POINTS, POINTS[:, 0]),
        TypeError,
        ("batch", "integers", "float"),
    ),
    Bad("same_voxels as a number", lambda g: g.same_voxels(3), TypeError, ("other", "Grid", "int")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("case", [*CONSTRUCTION, *USE], ids=lambda case: case.name)
def test_bad_input_is_named_and_changes_nothing(case: Bad) -> None:
    grid = a_grid()
    with pytest.raises(case.error) as caught:
        case.call(grid)
    message = str(caught.value)
    missing = [part for part in case.parts if part not in message]
    assert not missing, f"{missing} not in {message!r}"
    assert "\n" not in message
    assert re.match(r"[^ ]", message)
    assert grid.index(COORDS).tolist() == [0, 1, 2]
    assert grid.coarsen(2).subdivide(2).contains(COORDS).all()


def test_the_table_names_every_case_once() -> None:
    names = [case.name for case in (*CONSTRUCTION, *USE)]
    assert len(set(names)) == len(names)
