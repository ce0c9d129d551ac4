"""Bad input: the exception, and a message that names the argument, what was expected and what came."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, _readback
from sparsevox.testing import LIMIT

NAN, INF = float("nan"), float("inf")
COORDS = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [1, -4, 5, 6]])
POINTS = torch.tensor([[0.0, 0.5, 1.0], [2.0, -2.0, 0.0]])
VERTICES = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
FACES = torch.tensor([[0, 1, 2], [2, 1, 0]])
MASK = torch.ones(1, 2, 2, 2, dtype=torch.bool)
RANGE = "[-131072, 131071]"
BATCHES = "between 0 and 1024"
FACTORS = "between 1 and 262144"
GRID = Grid.from_coords(COORDS, batch_size=2)
MESH: dict[str, Any] = {"vertices": VERTICES, "faces": FACES, "voxel_size": 0.5}


class Bad(NamedTuple):
    """A call that must fail, with what its message must contain, separated by semicolons."""

    error: type[Exception]
    message: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grid: Grid

    def __str__(self) -> str:
        return f"{self.method}: {self.message}"


def wrong_type(message: str, method: str, *args: Any, **kwargs: Any) -> Bad:
    return Bad(TypeError, message, method, args, kwargs, GRID)


def wrong_value(message: str, method: str, *args: Any, on: Grid = GRID, **kwargs: Any) -> Bad:
    return Bad(ValueError, message, method, args, kwargs, on)


def voxel(*ijk: int) -> Grid:
    return Grid.from_coords(torch.tensor([[0, 0, 0], list(ijk)]))


def put(like: Tensor, row: int, column: int, value: float) -> Tensor:
    result = like.clone()
    result[row, column] = value
    return result


def bools(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def transforms() -> list[Bad]:
    cases = []
    for method, kwargs in (
        ("from_coords", {"coords": COORDS}),
        ("from_points", {"points": POINTS}),
        ("from_mesh", {"vertices": VERTICES, "faces": FACES}),
        ("from_dense", {"mask": MASK}),
        ("full", {"lower": 0, "upper": 1}),
        ("empty", {}),
    ):
        value: Any
        for value in (0.0, -2.0, (1.0, 1.0, -0.5), torch.tensor([1.0, 0.0, 1.0])):
            cases.append(wrong_value(f"voxel_size; positive; {value}", method, **kwargs, voxel_size=value))
        for value in (NAN, INF, (1, NAN, 1)):
            cases.append(wrong_value(f"voxel_size; finite; {value}", method, **kwargs, voxel_size=value))
            cases.append(wrong_value(f"origin; finite; {value}", method, **kwargs, voxel_size=1, origin=value))
        for value in ((1.0, 2.0), (1.0,) * 4):
            cases.append(wrong_value(f"voxel_size; three; {value}", method, **kwargs, voxel_size=value))
            cases.append(wrong_value(f"origin; three; {value}", method, **kwargs, voxel_size=1, origin=value))
        for value in ("1", True, (1, 2, "3")):
            cases.append(wrong_type(f"voxel_size; number; {value}", method, **kwargs, voxel_size=value))
            cases.append(wrong_type(f"origin; number; {value}", method, **kwargs, voxel_size=1, origin=value))
    return cases


def batch_sizes() -> list[Bad]:
    cases = []
    for method, kwargs in (
        ("from_coords", {"coords": COORDS}),
        ("from_points", {"points": POINTS, "voxel_size": 1.0}),
        ("full", {"lower": 0, "upper": 1}),
        ("empty", {}),
    ):
        for number in (-1, 1025):
            cases.append(wrong_value(f"batch_size; {BATCHES}; {number}", method, **kwargs, batch_size=number))
        for value in (1.0, True, "1"):
            cases.append(wrong_type(f"batch_size; int; {value}", method, **kwargs, batch_size=value))
    return cases


FROM_COORDS = [
    wrong_type("coords; torch.Tensor; list", "from_coords", [[0, 0, 0, 0]]),
    wrong_type("coords; integers; float32", "from_coords", COORDS.float()),
    wrong_type("coords; integers; bool", "from_coords", COORDS.bool()),
    wrong_value("coords; [M, 4] or [M, 3]; [3, 2]", "from_coords", COORDS[:, :2]),
    wrong_value("coords; [M, 4] or [M, 3]; [4]", "from_coords", COORDS[0]),
    wrong_value("coords; [M, 4] or [M, 3]; [1, 3, 4]", "from_coords", COORDS[None]),
    wrong_value("coords[2]; (-1, ; [0, 1024)", "from_coords", put(COORDS, 2, 0, -1)),
    wrong_value("coords[2]; (1024, ; [0, 1024)", "from_coords", put(COORDS, 2, 0, 1024)),
    wrong_value("coords[2]; (1, ; [0, 1)", "from_coords", COORDS, batch_size=1),
    wrong_value("coords[0]; (0, ; [0, 0)", "from_coords", COORDS, batch_size=0),
    wrong_value("coords[1] = (0, 131072, 0, -131080)", "from_coords",
                torch.tensor([[0, 0, 0], [LIMIT, 0, -LIMIT - 8], [0, LIMIT, 0]])),
    *[
        wrong_value(f"coords[1]; {value}; out of range; {RANGE}; 2^17", "from_coords", put(COORDS, 1, column, value))
        for value in (LIMIT, -LIMIT - 1, 1 << 40, -(1 << 63))
        for column in (1, 2, 3)
    ],
]  # fmt: skip

FROM_POINTS = [
    wrong_type("points; torch.Tensor; list", "from_points", [[0.0, 0.0, 0.0]], voxel_size=1),
    wrong_type("points; floating-point; int64", "from_points", POINTS.long(), voxel_size=1),
    wrong_type("batch; integers; float32", "from_points", POINTS, torch.zeros(2), voxel_size=1),
    wrong_type("batch; torch.Tensor; list", "from_points", POINTS, [0, 0], voxel_size=1),
    wrong_type("voxel_size; number; None", "from_points", POINTS, voxel_size=None),
    wrong_value("points; [P, 3]; [2, 2]", "from_points", POINTS[:, :2], voxel_size=1),
    wrong_value("batch; [2]; [3]", "from_points", POINTS, COORDS[:, 0], voxel_size=1),
    wrong_value("batch; [2]; [2, 1]", "from_points", POINTS, COORDS[:2, :1], voxel_size=1),
    wrong_value("batch[1]; -3; [0, 1024)", "from_points", POINTS, torch.tensor([0, -3]), voxel_size=1),
    wrong_value("batch[1]; 4; [0, 4)", "from_points", POINTS, torch.tensor([0, 4]), voxel_size=1, batch_size=4),
    wrong_value("mode; containing; enclosing; 'nearest'", "from_points", POINTS, voxel_size=1, mode="nearest"),
    wrong_value("origin; lower; one of them", "from_points", POINTS, voxel_size=1, origin=0, lower=0),
    wrong_value("lower; finite; nan", "from_points", POINTS, voxel_size=1, lower=NAN),
    wrong_value(f"points[1]; 131071.0; {RANGE}", "from_points", put(POINTS, 1, 0, LIMIT - 1), voxel_size=1,
                mode="enclosing"),
    *[
        wrong_value(f"points[1]; {shown}; {expected}", "from_points", put(POINTS, 1, 2, value), voxel_size=1, mode=mode)
        for mode in ("containing", "enclosing")
        for value, shown, expected in (
            (NAN, "nan", "finite"),
            (INF, "inf", "finite"),
            (-INF, "-inf", "finite"),
            (2e5, "200000.0", RANGE),
            (-1e30, "e+30", RANGE),
        )
    ],
]  # fmt: skip

FROM_MESH = [
    wrong_type("vertices; torch.Tensor; list", "from_mesh", **MESH | {"vertices": [[0.0] * 3] * 3}),
    wrong_type("vertices; floating-point; int64", "from_mesh", **MESH | {"vertices": VERTICES.long()}),
    wrong_type("faces; torch.Tensor; list", "from_mesh", **MESH | {"faces": [[0, 1, 2]]}),
    wrong_type("faces; integers; float32", "from_mesh", **MESH | {"faces": FACES.float()}),
    wrong_value("vertices; [V, 3]; [3, 2]", "from_mesh", **MESH | {"vertices": VERTICES[:, :2]}),
    wrong_value("faces; [F, 3]; [3, 4]", "from_mesh", **MESH | {"faces": COORDS}),
    wrong_value("faces[1]; [0, 3); (2, 1, 3)", "from_mesh", **MESH | {"faces": put(FACES, 1, 2, 3)}),
    wrong_value("faces[0]; [0, 3); (0, -1, 2)", "from_mesh", **MESH | {"faces": put(FACES, 0, 1, -1)}),
    wrong_value("faces[0]; [0, 0)", "from_mesh", **MESH | {"vertices": VERTICES[:0]}),
    wrong_value("vertices[2]; finite; nan", "from_mesh", **MESH | {"vertices": put(VERTICES, 2, 1, NAN)}),
    wrong_value("vertices[1]; finite; inf", "from_mesh", **MESH | {"vertices": put(VERTICES, 1, 0, INF)}),
    wrong_value(f"vertices[1]; 1000000.0; {RANGE}", "from_mesh", **MESH | {"vertices": put(VERTICES, 1, 0, 1e6)}),
]  # fmt: skip

OTHER_CONSTRUCTORS = [
    wrong_type("mask; bool; int64", "from_dense", MASK.long()),
    wrong_type("mask; torch.Tensor; list", "from_dense", [[[[True]]]]),
    wrong_type("lower; int; 0.5", "from_dense", MASK, lower=0.5),
    wrong_value("lower; three; (0, 0)", "from_dense", MASK, lower=(0, 0)),
    wrong_value("mask; [B, X, Y, Z]; [2, 2, 2]", "from_dense", MASK[0]),
    wrong_value(f"batch_size; {BATCHES}; 1025", "from_dense", bools(1025, 1, 1, 1)),
    wrong_value(f"lower; 131072; {RANGE}", "from_dense", MASK, lower=LIMIT - 1),
    wrong_value(f"lower; -131073; {RANGE}", "from_dense", MASK, lower=(0, 0, -LIMIT - 1)),
    wrong_type("lower; int; 0.0", "full", 0.0, 1),
    wrong_value("lower; upper; (1, 1, 1); (2, 0, 2)", "full", 1, (2, 0, 2)),
    wrong_value(f"upper; 131073; {RANGE}", "full", 0, (1, 1, LIMIT + 1)),
    wrong_value(f"lower; -131073; {RANGE}", "full", (-LIMIT - 1, 0, 0), 1),
    wrong_value("2147483647; 2147483648", "full", 0, (1 << 11, 1 << 10, 1 << 10)),
    wrong_value("2147483647; 2147483648", "full", 0, 128, batch_size=1024),
    wrong_value(f"2147483647; {1 << 54}", "full", -LIMIT, LIMIT),
    wrong_type("grids[1]; Grid; int", "stack", [GRID, 3]),
    wrong_value("grids; one; none", "stack", []),
    wrong_value("1024; 1025", "stack", [Grid.empty(1024), Grid.empty(1)]),
    wrong_value("grids[0]; grids[1]; voxel_size; 1.0; 2.0", "stack", [Grid.empty(), Grid.empty(voxel_size=2)]),
    wrong_value("grids[0]; grids[2]; origin; 0.0; 0.0001", "stack", [GRID, GRID, Grid.empty(origin=1e-4)]),
]

FACTOR = [
    *[
        wrong_value(f"factor; {expected}; {value}", verb, value)
        for verb in ("coarsen", "subdivide")
        for value, expected in (
            (0, FACTORS),
            (-2, FACTORS),
            ((2, 2, 0), FACTORS),
            (262145, FACTORS),
            ((2, 2), "three"),
        )
    ],
    *[
        wrong_type(f"factor; int; {value}", verb, value)
        for verb in ("coarsen", "subdivide")
        for value in (2.0, True, "2")
    ],
    *[
        wrong_value(f"factor; {factor}; (0, {i}, {j}, {k}); {RANGE}", "subdivide", factor, on=voxel(i, j, k))
        for i, j, k, factor in ((65536, 0, 0, 2), (5, -65537, 0, 2), (1, 2, 32768, 4), (-16385, 0, 0, 8))
    ],
    wrong_value(f"(0, 0, 0, 43691); {RANGE}", "subdivide", 3, on=voxel(0, 0, 43691)),
    wrong_value(f"(0, -43691, 0, 0); {RANGE}", "subdivide", (3, 1, 1), on=voxel(-43691, 0, 0)),
    wrong_value("2147483647; 8589934592", "subdivide", 1024, on=Grid.full(0, 2)),
    wrong_value("2147483647; (1024, 1024, 513)", "subdivide", (1024, 1024, 513), on=Grid.full(0, 2)),
    wrong_value("mask; [3]; [3, 8]", "subdivide", 4, bools(3, 8)),
    *[
        wrong_value(f"mask; {expected}; {list(shape)}", verb, *args, bools(*shape))
        for shape in ((2,), (4,), (3, 8, 1), (3, 7))
        for verb, args, expected in (
            ("prune", (), "[3]"),
            ("subdivide", (1,), "[3]"),
            ("subdivide", (2,), "[3] or [3, 8]"),
            ("subdivide", (3,), "[3]"),
        )
    ],
    *[
        wrong_type(f"mask; {expected}", verb, *args, mask)
        for mask, expected in ((torch.ones(3), "bool; float32"), ([True] * 3, "torch.Tensor; list"))
        for verb, args in (("prune", ()), ("subdivide", (2,)), ("subdivide", (3,)))
    ],
]

STENCIL = [
    *[
        wrong_value(expected, verb, **box)
        for verb in ("dilate", "erode")
        for expected, box in (
            ("radius; negative; -1", {"radius": -1}),
            ("radius; negative; -2", {"radius": (1, -2, 0)}),
            ("radius; three; (1, 1)", {"radius": (1, 1)}),
            ("lower; upper; (1, 1, 1); (1, 0, 1)", {"lower": 1, "upper": (1, 0, 1)}),
            ("lower; upper; together; -1; None", {"lower": -1}),
            ("lower; upper; together; None; 1", {"upper": 1}),
            ("262144; 262145", {"radius": 262145}),
            ("stencil; True", {"stencil": ~bools(3, 3, 3)}),
            ("stencil; True", {"stencil": bools(3, 0, 3)}),
            ("stencil; [a, b, c]; [3, 3]", {"stencil": bools(3, 3)}),
            ("stencil; box", {"stencil": bools(1, 1, 1), "radius": 2}),
            ("stencil; box", {"stencil": bools(1, 1, 1), "lower": 0, "upper": 1}),
            ("radius; lower; upper", {"radius": 3, "lower": 0, "upper": 1}),
        )
    ],
    *[
        wrong_type(expected, verb, **box)
        for verb in ("dilate", "erode")
        for expected, box in (
            ("radius; int; 0.5", {"radius": 0.5}),
            ("radius; int; True", {"radius": True}),
            ("upper; int; 1.5", {"lower": 0, "upper": 1.5}),
            ("stencil; bool; int64", {"stencil": bools(3, 3, 3).long()}),
            ("stencil; torch.Tensor; list", {"stencil": [[[True]]]}),
        )
    ],
    *[
        wrong_value(f"(0, {i}, {j}, {k}); {RANGE}", "dilate", on=voxel(i, j, k), **box)
        for i, j, k, box in (
            (LIMIT - 1, 0, 0, {"radius": 1}),
            (1, -LIMIT, 2, {"radius": 1}),
            (0, 7, LIMIT - 6, {"radius": (0, 0, 6)}),
            (0, 0, LIMIT - 3, {"lower": 3, "upper": 3}),
            (LIMIT - 1000, 0, 0, {"lower": 0, "upper": (1000, 0, 0)}),
        )
    ],
    wrong_value(f"(0, 131071, 0, 0); {RANGE}", "dilate", on=voxel(LIMIT - 1, 0, 0), stencil=bools(3, 1, 1)),
]

QUERIES = [
    wrong_type("upper; int; 1.5", "crop", 0, 1.5),
    wrong_type("lower; int; None", "crop", None, 1),
    wrong_value("lower; upper; (3, 3, 3); (1, 1, 1)", "crop", 3, 1),
    *[
        case
        for symbol, verb in (("|", "__or__"), ("&", "__and__"), ("-", "__sub__"), ("^", "__xor__"))
        for case in (
            wrong_type(f"{symbol}; Grid; int", verb, 3),
            wrong_type(f"{symbol}; Grid; Tensor", verb, COORDS),
            wrong_value(f"{symbol}; batch size; 2; 3", verb, Grid.empty(3)),
            wrong_value(f"{symbol}; voxel_size; 1.0; 1.1", verb, Grid.empty(2, voxel_size=(1, 1, 1.1))),
            wrong_value(f"{symbol}; origin; 0.0; 2e-05", verb, Grid.empty(2, origin=(0, 2e-5, 0))),
        )
    ],
    wrong_type("other; Grid; int", "same_voxels", 3),
    wrong_type("index; int; 0.5", "__getitem__", 0.5),
    wrong_type("index; int; True", "__getitem__", True),
    wrong_value("slice; step 1; 2", "__getitem__", slice(None, None, 2)),
    *[
        case
        for query in ("index", "contains")
        for case in (
            wrong_type("coords; integers; float32", query, COORDS.float()),
            wrong_type("coords; torch.Tensor; list", query, [[0, 0, 0]]),
            wrong_value("coords; [M, 4] or [M, 3]; [3, 2]", query, COORDS[:, :2]),
            wrong_value("coords; [M, 4] or [M, 3]; [4]", query, COORDS[0]),
        )
    ],
    wrong_type("xyz; torch.Tensor; list", "to_ijk", [0.0, 0.0, 0.0]),
    wrong_type("ijk; torch.Tensor; list", "to_world", [0, 0, 0]),
    wrong_value("ijk; [..., 3]; [3, 2]", "to_world", COORDS[:, :2]),
    wrong_value("xyz; [..., 3]; []", "to_ijk", torch.tensor(3.0)),
    wrong_type("points; floating-point; int64", "nearest", COORDS[:, 1:]),
    wrong_type("batch; integers; float32", "nearest", POINTS, POINTS[:, 0]),
    wrong_value("points; [P, 3]; [2, 2]", "nearest", POINTS[:, :2]),
    wrong_value("points[1]; finite; nan", "nearest", put(POINTS, 1, 0, NAN)),
    wrong_value("points[0]; finite; -inf", "nearest", put(POINTS, 0, 2, -INF)),
    wrong_value("batch; [2]; [3]", "nearest", POINTS, COORDS[:, 0]),
]

CASES = [*transforms(), *batch_sizes(), *FROM_COORDS, *FROM_POINTS, *FROM_MESH, *OTHER_CONSTRUCTORS, *FACTOR]
CASES += [*STENCIL, *QUERIES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_named_and_changes_nothing(case: Bad) -> None:
    with pytest.raises(case.error) as caught:
        getattr(case.grid, case.method)(*case.args, **case.kwargs)
    message = str(caught.value)
    missing = [part for part in case.message.split("; ") if part not in message]
    assert not missing, f"{missing} not in {message!r}"
    assert "\n" not in message
    assert GRID.index(COORDS).tolist() == [0, 1, 2]
    assert GRID.coarsen(2).subdivide(2).contains(COORDS).all()


@pytest.mark.parametrize("index", [2, -3, 1 << 70])
def test_an_item_that_is_not_there(index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index} .* batch of 2"):
        GRID[index]


@pytest.mark.parametrize("factor", [(1 << 17, 1 << 17, 3), 1 << 18])
def test_nothing_has_no_children(factor: int | tuple[int, int, int]) -> None:
    nobody = torch.zeros(3, dtype=torch.bool)
    assert Grid.empty(2).subdivide(factor).num_voxels == GRID.subdivide(factor, nobody).num_voxels == 0


def test_children_of_voxels_left_out_may_be_out_of_range() -> None:
    grid = voxel(LIMIT - 1, 0, 0)
    for factor in (2, 3, 4):
        assert grid.subdivide(factor, torch.tensor([True, False])).num_voxels == factor**3


@pytest.mark.parametrize(("grid", "verb"), [(Grid.empty(), "dilate"), (Grid.empty(), "erode"), (GRID, "erode")])
def test_nothing_left_ends_the_work(grid: Grid, verb: str) -> None:
    before = _readback.calls
    assert getattr(grid, verb)(2000).num_voxels == 0
    assert _readback.calls - before < 20


def test_a_dilation_out_of_range_is_refused_before_the_work() -> None:
    before = _readback.calls
    with pytest.raises(ValueError, match="out of the range"):
        voxel(LIMIT - 1000, 0, 0).dilate((2000, 0, 0))
    assert _readback.calls - before < 20


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("message", "method", "args"),
    [
        ("coords must be on the device of the grid, cpu, got cuda", "index", (COORDS,)),
        ("mask must be on the device of the grid, cpu, got cuda", "prune", (bools(3),)),
        ("mask must be on the device of the grid, cpu, got cuda", "subdivide", (2, bools(3))),
        ("points must be on the device of the grid, cpu, got cuda", "nearest", (POINTS,)),
        ("must be on the same device, got cpu and cuda", "__or__", (GRID,)),
    ],
)
def test_two_devices_are_named(message: str, method: str, args: tuple[Any, ...]) -> None:
    there = [arg.cuda() if isinstance(arg, Tensor | Grid) else arg for arg in args]
    with pytest.raises(ValueError, match=message):
        getattr(GRID, method)(*there)


@pytest.mark.gpu
def test_inputs_on_two_devices_are_named() -> None:
    with pytest.raises(ValueError, match="faces must be on the device of vertices"):
        Grid.from_mesh(VERTICES, FACES.cuda(), voxel_size=1.0)
    with pytest.raises(ValueError, match="batch must be on the device of points"):
        Grid.from_points(POINTS.cuda(), torch.zeros(2).long(), voxel_size=1.0)
    with pytest.raises(ValueError, match=r"grids\[0\] and grids\[1\] must be on the same device"):
        Grid.stack([GRID, GRID.cuda()])
