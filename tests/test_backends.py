"""Whole grids through the public verbs, once with each backend: thousands of random grids, row for row."""

from collections.abc import Iterator

import pytest
import torch

from bench.scenes import TINY, scene
from sparsevox import Grid, _readback, ops
from sparsevox.testing import as_coords, random_batch

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
    derived = [
        *(
            grid,
            large,
            coarse,
            grid.coarsen(8),
            grid.coarsen((2, 2, 1)),
            grid.dilate(lower=-4, upper=(0, 2, 3)),
        ),
        *(large.erode(1), coarse.subdivide(2), grid.subdivide(2, keep), grid.subdivide(3), grid.prune(keep)),
        *(large - grid, coarse ^ grid.coarsen(2).dilate(1), grid & grid.prune(keep), large | grid),
        *(grid.crop(-5, (9, 4, 7)), Grid.stack([grid.prune(~keep), coarse.subdivide(2)])[1:3]),
    ]
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


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="block sizes of the interpreter, which is not used with a GPU"
)
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
        Grid.from_coords(coords, batch_size=1)
        for made in (
            grid.coarsen(2),
            grid.coarsen(4),
            grid.dilate(1),
            grid.erode(1),
            grid.prune(keep),
            grid | grid,
        ):
            assert made.index(coords).shape == (grid.num_voxels,)
        grid.subdivide(2, keep)
        ops.neighbor_table(grid)
    finally:
        torch.cuda.set_sync_debug_mode("default")
