"""Ops as PyTorch sees them: schemas, fakes, graphs, and the choice of the backend."""

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sparsevox import Grid, SparseTensor, _readback, nn
from sparsevox.ops import _library, neighbor_table
from sparsevox.ops import bricks as brick_ops
from sparsevox.plans import pair_block
from sparsevox.reference import topology as reference_topology
from sparsevox.reference._runs import assemble
from sparsevox.testing import as_coords, random_batch

Results = tuple[Tensor, ...]
Args = tuple[Any, ...]

PREFIX = f"{_library.NAMESPACE}::"
NAMES = sorted(name.removeprefix(PREFIX) for name in torch._C._dispatch_get_all_op_names() if name.startswith(PREFIX))


def some_grid(seed: int = 4, count: int = 60) -> Grid:
    case = random_batch(seed, 3, count=count, kinds=("clustered", "solid", "linear"))
    return Grid.from_coords(as_coords(case.voxels), batch_size=3)


GRIDS = {
    "ordinary": some_grid(),
    "one voxel": Grid.full(0, 1),
    "no voxels": Grid.empty(2),
    "no items": Grid.empty(0),
}


def cases(grid: Grid) -> dict[str, list[Args]]:
    """Arguments for every op. An op without an entry fails."""
    keys, masks, starts, offsets, rows = grid.bricks
    table, coords, other = brick_ops.table(grid.bricks), grid.coords, grid.crop(-2, 9).bricks
    keep = grid.ijk[:, 0] > 0
    points, batch = grid.ijk.double() + 0.25, grid.batch
    mesh = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.5, 0.0], [0.0, 4.0, 1.0]], dtype=torch.float64)
    volume = torch.arange(grid.batch_size * 30).reshape(-1, 2, 3, 5) % 3 == 0
    one, two = [-1, 0, -1], [0, 2, 4]
    return {
        "brick_bounds": [(keys, masks, offsets)],
        "brick_coords": [(keys, masks, starts, rows)],
        "brick_table": [(keys,)],
        "build_bricks": [(coords, grid.batch_size, "sort"), (coords.long().flip(0), None, "hash")],
        "coarsen_bricks": [(keys, masks, offsets, 1), (keys, masks, offsets, 3)],
        "combine_bricks": [(keys, masks, *other[:2], offsets, op) for op in ("or", "and", "sub", "xor")],
        "crop_bricks": [(keys, masks, offsets, [-3, 0, 0], [5, 4, 9])],
        "dense_bricks": [(volume, [-1, 0, 1])],
        "dilate_bricks": [(keys, masks, offsets, one, two)],
        "erode_bricks": [(keys, masks, offsets, t, one, two) for t in (None, table)],
        "find_rows": [
            (coords + 1, keys, masks, starts, None),
            (coords[:0].long(), keys, masks, starts, table),
        ],
        "mesh_voxels": [
            (mesh, torch.tensor([[0, 1, 2], [1, 1, 0]])),
            (mesh, torch.empty(0, 3, dtype=torch.int64)),
        ],
        "nearest_rows": [(points, batch, *grid.bricks, [1.0, 0.5, 2.0])],
        "neighbor_bricks": [(keys, None), (keys, table)],
        "prune_bricks": [(keys, masks, starts, offsets, keep)],
        **convolutions(grid),
        **reductions(grid),
        **features(grid),
        "subdivide_bricks": [
            (keys, masks, starts, offsets, rows, 1, None),
            (keys, masks, starts, offsets, rows, 2, keep),
            (keys, masks, starts, offsets, rows, 1, keep[:, None].expand(-1, 8).contiguous()),
        ],
    }


def convolutions(grid: Grid) -> dict[str, list[Args]]:
    """Arguments for kernel maps and convolutions, with gradients of features, weight and bias."""
    coarse = grid.strided(3, 2)
    down, own = grid.kernel_map(3, stride=2, target=coarse), grid.kernel_map((1, 3, 1))
    pairs = down.down.pairs
    geometry = (*own.geometry,)
    block = pair_block(27)
    feats = torch.randn(grid.num_voxels, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(27, 2, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    lone = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    grads = torch.randn(coarse.num_voxels, 6, dtype=torch.float64, requires_grad=True)
    both = ([*down.down.plan], [*down.up.plan], [*pairs], False, 2)
    alone: Args = ([*own.down.plan], [], [*own.down.pairs], True, 1)
    bricks = (*grid.bricks[:3], grid.bricks.rows)
    return {
        "adjoint_table": [(down.table, grid.bricks.rows)],
        "conv": [(feats, weight, bias, *both), (feats, lone, None, *alone)],
        "conv_weight": [
            (feats, grads, *both, torch.float64),
            (feats, feats.detach()[:, :2], *alone, torch.float32),
        ],
        "kernel_table": [(*bricks, grid.table, *bricks, *geometry), (*bricks, None, *bricks, *geometry)],
        "pair_bags": [(pairs.targets, pairs.starts, down.table, block)],
        "pair_lists": [(down.table, block), (own.table, 64)],
        "row_plan": [(down.table,)],
    }


def reductions(grid: Grid) -> dict[str, list[Args]]:
    """Arguments for pooling, with gradients of the fine rows `x`, and of the coarse rows `y` and `z`."""
    child_map, window = grid.child_map(2), grid.kernel_map(3, stride=2)
    ranges, parents, down, up = child_map.ranges, child_map.parents, window.down.table, window.up.table
    children, divisors = torch.arange(grid.num_voxels).int(), ranges.diff().long()
    winners = down[12:15].t().contiguous()
    sizes = (grid.num_voxels, down.shape[1], child_map.num_coarse)
    x, y, z = (torch.ones(n, 3, requires_grad=True) for n in sizes)
    half = x.detach().half().requires_grad_()
    return {
        "child_ranges": [(*grid.bricks[:3], grid.bricks.rows, grid.coarsen(n).bricks.rows, n // 2) for n in (1, 2, 4)],
        "extreme_ranges": [(x, ranges, None, parents, True, 8), (x, ranges, children, parents, False, 0)],
        "max_table": [(x, down, up), (x.detach(), down, None)],
        "place_rows": [(y, winners, up)],
        "sum_ranges": [(x, ranges, None, parents, None, 8), (half, ranges, children, parents, divisors, 0)],
        "sum_table": [
            (x, down, up, None, None, False, 0),
            (z, parents[None], ranges, None, divisors, True, 8),
            (z, parents[None], ranges, children, None, False, 0),
        ],
        "take_rows": [(x, winners, up)],
    }


def features(grid: Grid) -> dict[str, list[Args]]:
    """Arguments for norms, samples, volumes and attention, with gradients."""
    offsets, cells = grid.offsets, torch.arange(grid.num_voxels) - 1
    feats = torch.linspace(-1, 1, 4 * grid.num_voxels).reshape(-1, 4).requires_grad_()
    corners = torch.stack([grid.index(grid.coords + step) for step in (0, 1)], 1).int()
    weights = torch.linspace(0, 1, corners.numel()).reshape(corners.shape).requires_grad_()
    channel, statistics = torch.arange(1.0, 5).requires_grad_(), torch.ones(grid.batch_size, 2)
    space = torch.linspace(-1, 1, 20 * grid.num_voxels).reshape(1, 4, 1, grid.num_voxels, 5).requires_grad_()
    plain, heads = feats.detach(), feats.detach().reshape(-1, 2, 2).requires_grad_()
    return {
        "dot_rows": [(feats, corners, feats)],
        "gather_dense": [(space, cells)],
        "gather_rows": [(feats, corners, weights)],
        "group_norm": [
            (feats, offsets, channel, channel, 2, 1e-5),
            (plain.half(), offsets, None, None, 4, 1e-3),
        ],
        "group_norm_backward": [(plain, plain, offsets, w, statistics, statistics) for w in (plain.new_ones(4), None)],
        "ragged_attention": [(heads, heads, heads, offsets, offsets, 0.5)],
        "ragged_attention_backward": [(*[heads.detach()] * 4, offsets, offsets, 0.5)],
        "scatter_dense": [(feats, cells, 1, [1, grid.num_voxels, 5])],
        "sum_rows": [(feats, corners, weights, grid.num_voxels + 1)],
    }


def op(name: str) -> torch._ops.OpOverload[..., Any]:
    overload: torch._ops.OpOverload[..., Any] = getattr(getattr(torch.ops, _library.NAMESPACE), name).default
    return overload


def as_tuple(results: Any) -> Results:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def test_every_op_has_a_case() -> None:
    assert sorted(cases(GRIDS["ordinary"])) == NAMES


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, grid: str) -> None:
    for args in cases(GRIDS[grid])[name]:
        torch.library.opcheck(op(name), args)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_results_are_fresh_and_deterministic(name: str, grid: str) -> None:
    for args in cases(GRIDS[grid])[name]:
        results, again = as_tuple(op(name)(*args)), as_tuple(op(name)(*args))
        assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor) and a.numel()}
        outputs = [r.untyped_storage().data_ptr() for r in results if r.numel()]
        assert not inputs & set(outputs)
        assert len(set(outputs)) == len(outputs)
        assert all(r.is_contiguous() for r in results)


VERBS: dict[str, Callable[[Grid], Results]] = {
    "coords": lambda g: (g.coords, g.ijk, g.batch),
    "bounds": lambda g: g.bounds(),
    "index": lambda g: (g.index(g.coords + 1), g.contains(g.coords)),
    "nearest": lambda g: (g.nearest(g.to_world(g.ijk) + 0.3, g.batch),),
    "neighbors": lambda g: (neighbor_table(g),),
    "coarsen by 2": lambda g: g.coarsen(2).bricks,
    "coarsen by (3, 1, 2)": lambda g: g.coarsen((3, 1, 2)).bricks,
    "subdivide by 2": lambda g: g.subdivide(2).bricks,
    "subdivide by (3, 1, 2)": lambda g: g.subdivide((3, 1, 2)).bricks,
    "subdivide, some": lambda g: g.subdivide(2, g.ijk[:, 0] > 0).bricks,
    "subdivide by 3, some": lambda g: g.subdivide(3, g.ijk[:, 0] > 0).bricks,
    "dilate": lambda g: g.dilate(1).bricks,
    "dilate in two steps": lambda g: g.dilate((5, 0, 2)).bricks,
    "erode in two steps": lambda g: g.erode((5, 0, 0)).bricks,
    "erode": lambda g: g.erode((1, 0, 0)).bricks,
    "prune": lambda g: g.prune(g.ijk[:, 0] > 0).bricks,
    "crop": lambda g: g.crop(-3, 5).bricks,
    "union": lambda g: (g | g.dilate(1)).bricks,
    "difference": lambda g: (g.dilate(1) - g).bricks,
    "from_coords": lambda g: Grid.from_coords(g.coords // 3, batch_size=3).bricks,
    "from_coords of any batch size": lambda g: Grid.from_coords(g.coords // 3).bricks,
    "from_points": lambda g: Grid.from_points(g.ijk / 3.5, g.batch, voxel_size=1.25, batch_size=3).bricks,
    "from_dense": lambda g: Grid.from_dense(g.offsets.reshape(1, 2, 2, 1) > 9).bricks,
    "full": lambda g: (Grid.full(-3, 5, batch_size=3) & g).bricks,
    "a chain": lambda g: ((g.coarsen(2).dilate(1).coarsen(2).subdivide(4) & g).coords,),
}


@pytest.mark.parametrize("name", VERBS)
def test_verbs_compile_into_one_graph_for_all_sizes(name: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(VERBS[name], fullgraph=True, backend=counter)
    for seed in range(10):
        grid = some_grid(seed, count=20 * seed + 10)
        pairs = itertools.zip_longest(compiled(grid), VERBS[name](grid))
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    assert counter.frame_count <= 2


def test_grids_leave_and_enter_graphs() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda g: g.coarsen(2).dilate(1), fullgraph=True, backend="aot_eager")
    grid = some_grid()
    result = compiled(grid)
    assert isinstance(result, Grid)
    assert result.same_voxels(grid.coarsen(2).dilate(1))
    assert (result.voxel_size, result.origin) == ((2.0,) * 3, (0.5,) * 3)
    assert compiled(result).same_voxels(result.coarsen(2).dilate(1))


def test_sizes_born_in_a_graph_may_be_zero() -> None:
    def nothing(grid: Grid) -> Grid:
        return (grid - grid).dilate(1).subdivide(2).coarsen(2) | grid.erode(9)

    torch._dynamo.reset()
    compiled = torch.compile(nothing, fullgraph=True, backend="aot_eager")
    for grid in (some_grid(), some_grid(1), Grid.empty(3)):
        assert compiled(grid).same_voxels(Grid.empty(3))


def test_the_cpu_uses_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEVOX_BACKEND", raising=False)
    assert _library._backend("reference") == "reference"
    assert _library._backend("triton") == "triton"
    called: list[Any] = []

    def watched(*args: Any) -> Any:
        called.append(args)
        return assemble(*args)

    monkeypatch.setattr(reference_topology, "assemble", watched)
    for backend in ("reference", ""):
        monkeypatch.setenv("SPARSEVOX_BACKEND", backend)
        assert Grid.full(0, 3).num_voxels == 27
    assert len(called) == 2


def test_few_frames_lie_between_a_layer_and_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    package, frames = Path(nn.__file__).parents[1], list[str]()

    def watched(*args: Any) -> bool:
        frames[:] = [frame.function for frame in inspect.stack(0) if package in Path(frame.filename).parents]
        return False

    monkeypatch.setattr("sparsevox.reference._im2col.pays_off", watched)
    grid = Grid.full(0, 3)
    nn.Conv3d(2, 2, 3)(SparseTensor(grid, torch.ones(27, 2)))
    assert frames == ["conv", "_run", "forward", "call", "convolve", "_convolve", "forward"]


def test_an_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEVOX_BACKEND", "cuda")
    with pytest.raises(ValueError, match="SPARSEVOX_BACKEND must be 'reference' or 'triton', got 'cuda'"):
        Grid.full(0, 3)


def test_triton_on_the_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEVOX_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="SPARSEVOX_BACKEND=triton needs TRITON_INTERPRET=1"):
        Grid.full(0, 3)


@pytest.mark.triton36
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are compiled, not interpreted")
def test_all_verbs_agree_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    expected = {name: verb(GRIDS["ordinary"]) for name, verb in VERBS.items()}
    monkeypatch.setenv("SPARSEVOX_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    fresh = Grid(GRIDS["ordinary"].bricks)
    for name, results in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(VERBS[name](fresh), results, strict=True)), name


def test_read_backs_are_counted_through_ops() -> None:
    before = _readback.calls
    op("coarsen_bricks")(*cases(GRIDS["ordinary"])["coarsen_bricks"][0])
    assert _readback.calls > before
