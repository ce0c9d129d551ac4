"""Whole grids through the public verbs, once with each backend: thousands of random grids, row for row."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.scenes import TINY, scene
from sparsevox import Grid, _readback, ops
from sparsevox.morton import Bricks
from sparsevox.ops import bricks as brick_ops
from sparsevox.ops import neighbors as neighbor_ops
from sparsevox.reference.bricks import build_bricks
from sparsevox.testing import LIMIT, as_coords, random_batch

pytest.importorskip("triton", reason="compares with the Triton backend")

KINDS = ("clustered", "solid", "planar", "linear", "isolated", "empty")


def chain(
    coords: torch.Tensor, batch_size: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.Tensor]:
    """Arrays of every grid and table that the verbs make, one after the other."""
    monkeypatch.setenv("SPARSEVOX_BACKEND", backend)
    grid = Grid.from_coords(coords, batch_size=batch_size, voxel_size=0.5)
    large, coarse = grid.dilate(1), grid.coarsen(2)
    keep = torch.arange(grid.num_voxels, device=grid.device) % 3 != 0
    derived = [grid, large, coarse, grid.coarsen(8), grid.coarsen((2, 2, 1)), grid.dilate(lower=-4, upper=(0, 2, 3))]
    derived += [large.erode(1), coarse.subdivide(2), grid.subdivide(2, keep), grid.subdivide(3), grid.prune(keep)]
    derived += [large - grid, coarse ^ grid.coarsen(2).dilate(1), grid & grid.prune(keep), large | grid]
    derived += [grid.crop(-5, (9, 4, 7)), Grid.stack([grid.prune(~keep), coarse.subdivide(2)])[1:3]]
    for made in derived:
        yield from made.bricks
        yield made.coords
        yield from made.bounds()
    yield ops.neighbor_table(large)
    yield large.index(grid.coords)
    yield grid.index(large.coords)


def assert_backends_agree(
    coords: torch.Tensor, batch_size: int, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    expected = chain(coords, batch_size, "reference", monkeypatch)
    reference = [array.clone() for array in expected]
    for a, b in zip(chain(coords.to(device), batch_size, "triton", monkeypatch), reference, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.triton36), 1, 2, 3, 4])
def test_random_grids(seed: int, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    data = random_batch(seed, 500, count=12, kinds=KINDS)
    assert_backends_agree(as_coords(data.voxels), data.batch_size, monkeypatch, device)


@pytest.mark.triton36
@pytest.mark.parametrize("name", TINY)
def test_scenes(name: str, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    assert_backends_agree(scene(name, TINY[name]), 64, monkeypatch, device)


@pytest.mark.parametrize("seed", range(2))
def test_scattered_grids_up_to_the_limits(seed: int, device: torch.device, agree: Callable[..., Any]) -> None:
    sets = [random_batch(seed + i, 100, count=12, kinds=("limits", "scattered", "clustered")) for i in (0, 7)]
    a, b = (Bricks(*(t.to(device) for t in build_bricks(as_coords(s.voxels), 100))) for s in sets)
    half = b.keys[::2].clone(), b.masks[::2].clone()
    a = Bricks(*agree("topology", "combine_bricks", a.keys, a.masks, *half, a.offsets, "or"))
    arrays = (a.keys, a.masks, a.offsets)
    for level in (1, 2, 16, 17, 18):
        agree("topology", "coarsen_bricks", *arrays, level)
    for op in ("and", "sub", "xor"):
        agree("topology", "combine_bricks", a.keys, a.masks, b.keys, b.masks, a.offsets, op)
    agree("topology", "crop_bricks", *arrays, [-LIMIT, -5, 0], [LIMIT, LIMIT, LIMIT - 2])
    keep = torch.arange(a.rows.shape[0], device=device) % 2 > 0
    agree("topology", "prune_bricks", a.keys, a.masks, a.starts, a.offsets, keep)
    table = brick_ops.table(a)
    agree("morphology", "erode_bricks", *arrays, table, [-1, 0, -4], [0, 1, 4])
    whole = (a.keys, a.masks, a.starts, a.rows)
    agree("neighbors", "kernel_table", *whole, table, *whole, *neighbor_ops.CUBE, read_backs=0)
    agree("bricks", "brick_bounds", *arrays, read_backs=0)


@pytest.mark.gpu
def test_verbs_without_a_kernel_give_the_same_on_the_gpu() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 40 * torch.rand(300, 3, generator=generator, dtype=torch.float64) - 20
    batch = torch.randint(3, (300,), generator=generator)
    faces = torch.randint(300, (60, 3), generator=generator)
    stencil = torch.rand(3, 2, 3, generator=generator) < 0.5
    stencil[1, 0, 1] = True
    results = []
    for device in ("cpu", "cuda"):
        here, items, triangles, kernel = (t.to(device) for t in (points, batch, faces, stencil))
        grid = Grid.from_points(here, items, voxel_size=0.7, mode="enclosing", batch_size=3)
        mesh = Grid.from_mesh(here, triangles, voxel_size=0.7)
        grids = [grid, mesh, grid.dilate(stencil=kernel), mesh.erode(stencil=kernel), mesh.dilate(9)]
        grids += [grid.subdivide(3), grid.coarsen((3, 1, 2)), Grid.from_dense(kernel[None])]
        arrays = [array for made in grids for array in (*made.bricks, made.coords, *made.bounds())]
        arrays += [mesh.nearest(here), mesh.to_ijk(here), grid.to_world(grid.ijk), grid.index(mesh.coords)]
        results.append([array.cpu() for array in arrays])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="block sizes of the interpreter, which is not used with a GPU")
@pytest.mark.parametrize(("name", "size"), [("shell", 10), ("curves", 5)])
def test_many_small_programs(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsevox.kernels._launch.INTERPRETER_LANES", 1024)
    assert_backends_agree(scene(name, size), 1, monkeypatch, torch.device("cpu"))


@pytest.mark.triton36
def test_one_read_back_for_each_built_grid(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setenv("SPARSEVOX_BACKEND", "triton")
    grid = Grid.from_coords(scene("shell", 12).to(device))
    keep = torch.ones(grid.num_voxels, dtype=torch.bool, device=device)
    verbs = {
        "from_coords": lambda: Grid.from_coords(grid.coords),
        "from_dense": lambda: Grid.from_dense(torch.ones(2, 5, 5, 5, dtype=torch.bool, device=device)),
        "full": lambda: Grid.full(0, 5, device=device),
        "coarsen 2": lambda: grid.coarsen(2),
        "coarsen 8": lambda: grid.coarsen(8),
        "coarsen 3": lambda: grid.coarsen(3),
        "subdivide": lambda: grid.subdivide(2),
        "subdivide 4": lambda: grid.subdivide(4, keep),
        "dilate": lambda: grid.dilate(1),
        "erode": lambda: grid.erode(1),
        "or": lambda: grid | grid,
        "sub": lambda: grid - grid,
        "prune": lambda: grid.prune(keep),
        "crop": lambda: grid.crop(0, 3),
        "item": lambda: grid[0],
    }
    for name, verb in verbs.items():
        before = _readback.calls
        verb()
        assert _readback.calls - before == 1, name
    before = _readback.calls
    grid.index(grid.coords)
    ops.neighbor_table(grid)
    Grid.stack([grid, grid])
    Grid.empty(2)
    assert _readback.calls == before


@pytest.mark.gpu
def test_nothing_else_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid.from_coords(scene("shell", 12).cuda(), batch_size=1)
    original = _readback.read_back

    def allowed(*values: torch.Tensor) -> list[int]:
        torch.cuda.set_sync_debug_mode("default")
        numbers = original(*values)
        torch.cuda.set_sync_debug_mode("error")
        return numbers

    for module in ("_finish", "topology", "dense"):
        monkeypatch.setattr(f"sparsevox.kernels.{module}.read_back", allowed)
    coords, keep = grid.coords, torch.ones(grid.num_voxels, dtype=torch.bool, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = [
            Grid.from_coords(coords, batch_size=1),
            Grid.from_dense(keep.view(1, 1, 1, -1)),
            Grid.full(0, 5, device="cuda"),
        ]
        made += [
            grid.coarsen(2),
            grid.coarsen(4),
            grid.coarsen(3),
            grid.dilate(1),
            grid.erode(1),
            grid.crop(0, 3),
        ]
        made += [
            grid.prune(keep),
            grid | grid,
            grid & grid,
            grid - grid,
            grid ^ grid,
            grid.subdivide(2, keep),
        ]
        made += [
            grid.subdivide(4, keep),
            Grid.from_points(coords[:, 1:] / 2, voxel_size=1.0),
            Grid.stack([grid, grid]),
        ]
        for one in made:
            assert one.index(one.coords).shape == (one.num_voxels,)
            ops.neighbor_table(one)
    finally:
        torch.cuda.set_sync_debug_mode("default")
