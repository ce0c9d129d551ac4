"""Kernel maps as objects: which calls give the same one, what keeps it, when its memory returns."""

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, KernelMap, _readback, ops
from sparsevox.testing import as_coords, random_batch

Make = Callable[[Grid, Grid], KernelMap]

MAPS: dict[str, Make] = {
    "within": lambda fine, coarse: fine.kernel_map(3),
    "dilated": lambda fine, coarse: fine.kernel_map(3, dilation=2),
    "even": lambda fine, coarse: fine.kernel_map(2),
    "strided": lambda fine, coarse: fine.kernel_map(3, stride=2, target=coarse),
    "blocks": lambda fine, coarse: fine.kernel_map(2, stride=2, target=coarse),
}


def some_grid(seed: int = 4, count: int = 200) -> Grid:
    case = random_batch(seed, 3, count=count, kinds=("clustered", "solid", "linear"))
    return Grid.from_coords(as_coords(case.voxels), batch_size=3)


@pytest.fixture
def grid() -> Grid:
    return some_grid()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turn off garbage collection: only reference counts free memory, so that a reference cycle is noticed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def train(fine: Grid, coarse: Grid, make: Make) -> None:
    """Convolve down and up with gradients, so that a map makes all of its plans."""
    feats = torch.randn(fine.num_voxels, 2, requires_grad=True)
    kernel_map = make(fine, coarse)
    weight = torch.randn(3, 2, *kernel_map.geometry.kernel_size, requires_grad=True)
    out = ops.conv3d(feats, weight, None, kernel_map)
    ops.conv_transpose3d(out, weight, None, kernel_map).sum().backward()


def watch(kernel_map: KernelMap) -> list[Callable[[], object]]:
    """Weak references to a map and to all tensors that it has made."""
    tensors = {id(t): t for t in (*kernel_map.down.tensors, *kernel_map.up.tensors)}
    return [weakref.ref(kernel_map), *map(weakref.ref, tensors.values())]


def alive(watched: list[Callable[[], object]]) -> int:
    return sum(ref() is not None for ref in watched)


def test_equal_calls_give_the_same_map(grid: Grid) -> None:
    first = grid.kernel_map(3)
    assert grid.kernel_map((3, 3, 3), stride=[1, 1, 1], dilation=1, padding=1, target=grid) is first
    assert grid.kernel_map(3, dilation=1) is first
    others = [grid.kernel_map(3, padding=0), grid.kernel_map(5), grid.kernel_map(3, dilation=2), grid.kernel_map(2)]
    twin = some_grid()
    others += [twin.kernel_map(3), grid.kernel_map(3, target=twin)]
    assert first not in others
    assert len(set(map(id, others))) == len(others)
    assert grid.kernel_map(3, target=twin) is others[-1]


def test_equal_targets_give_the_same_map_while_they_live(grid: Grid) -> None:
    coarse = grid.strided(3, 2)
    first = grid.kernel_map(3, stride=2)
    assert grid.kernel_map(3, stride=(2, 2, 2), target=grid.strided(3)) is first
    assert grid.kernel_map(3, stride=2, target=coarse) is first
    blocks = grid.coarsen(2)
    assert grid.kernel_map(2, stride=2) is grid.kernel_map(2, stride=2, target=blocks)
    assert grid.kernel_map(2, stride=2) is not first


def test_maps_to_several_targets_live_together(grid: Grid) -> None:
    targets = [grid.strided(3, 2), grid.coarsen(2), grid.coarsen(2).dilate(1)]
    maps = [grid.kernel_map(3, stride=2, target=target) for target in targets]
    assert [m.num_coarse for m in maps] == [target.num_voxels for target in targets]
    for target, kernel_map in zip(targets, maps, strict=True):
        assert grid.kernel_map(3, stride=2, target=target) is kernel_map


def test_a_wrong_target_is_never_served(grid: Grid) -> None:
    for seed in range(5):  # the new target may lie where the old one lay
        coarse = some_grid(seed).coarsen(2)
        table = grid.kernel_map(3, stride=2, target=coarse).table
        assert torch.equal(table, some_grid().kernel_map(3, stride=2, target=coarse).table)
        del coarse


def test_both_directions_are_made_once_and_when_needed(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEVOX_BACKEND", "reference")  # the other backend makes its plans in other steps
    kernel_map = grid.kernel_map(3, stride=2)
    feats, weight = torch.randn(grid.num_voxels, 2), torch.randn(3, 2, 3, 3, 3)
    out = ops.conv3d(feats, weight, None, kernel_map)
    forward_only = kernel_map.nbytes
    assert kernel_map._up is None
    ops.conv_transpose3d(out, weight, None, kernel_map)
    assert kernel_map.nbytes > forward_only
    before = watch(kernel_map), kernel_map.nbytes
    weight.requires_grad_()
    for _ in range(2):
        ops.conv_transpose3d(ops.conv3d(feats, weight, None, kernel_map), weight, None, kernel_map).sum().backward()
    assert alive(before[0]) == len(before[0])
    assert kernel_map.nbytes == before[1]


def test_a_symmetric_map_needs_one_direction(grid: Grid) -> None:
    train(grid, grid, MAPS["within"])
    train(grid, grid, MAPS["even"])
    assert grid.kernel_map(3)._up is None
    assert grid.kernel_map(2)._up is not None


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", MAPS)
def test_maps_die_with_the_fine_grid(name: str) -> None:
    fine = some_grid()
    coarse = fine.coarsen(2)
    train(fine, coarse, MAPS[name])
    watched = watch(MAPS[name](fine, coarse))
    assert alive(watched) == len(watched) >= 5
    del fine
    assert alive(watched) == 0
    assert coarse.num_voxels


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", ["strided", "blocks"])
def test_maps_die_with_the_coarse_grid(name: str) -> None:
    fine = some_grid()
    coarse, other = fine.coarsen(2), fine.coarsen(2).dilate(1)
    train(fine, coarse, MAPS[name])
    train(fine, other, MAPS[name])
    watched, kept = watch(MAPS[name](fine, coarse)), watch(MAPS[name](fine, other))
    del coarse
    assert alive(watched) == 0
    assert alive(kept) == len(kept)
    del other
    assert alive(kept) == 0


@pytest.mark.usefixtures("no_collector")
def test_a_grid_without_a_holder_takes_its_map_along(grid: Grid) -> None:
    watched = watch(grid.kernel_map(3, stride=2))
    assert alive(watched) == 0
    grid.kernel_map(3, target=some_grid())
    assert not grid._maps


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", MAPS)
def test_who_holds_a_map_keeps_it_and_not_the_grids(name: str) -> None:
    fine = some_grid()
    coarse = fine.coarsen(2)
    kernel_map = MAPS[name](fine, coarse)
    watched = watch(kernel_map)
    grids: list[Callable[[], object]] = [weakref.ref(fine), weakref.ref(coarse)]
    grids += [weakref.ref(t) for t in (fine.bricks.keys, fine.bricks.masks, coarse.bricks.keys)]
    del fine, coarse
    assert alive(grids) == 0
    assert alive(watched) == len(watched)
    del kernel_map
    assert alive(watched) == 0


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", MAPS)
def test_a_cleared_cache_forgets(grid: Grid, name: str) -> None:
    coarse = grid.coarsen(2)
    train(grid, coarse, MAPS[name])
    watched, held = watch(MAPS[name](grid, coarse)), grid.kernel_map(5)
    grid.clear_cache()
    assert alive(watched) == 0
    assert grid.coarsen(2) is not coarse
    assert grid.kernel_map(5) is not held
    assert torch.equal(grid.kernel_map(5).table, held.table)


@pytest.mark.usefixtures("no_collector")
def test_gradients_keep_maps_until_they_are_done() -> None:
    fine = some_grid()
    feats = torch.randn(fine.num_voxels, 2, requires_grad=True)
    out = ops.conv3d(feats, torch.randn(3, 2, 3, 3, 3, requires_grad=True), None, fine.kernel_map(3, stride=2))
    del fine
    out.sum().backward()
    assert feats.grad is not None
    assert feats.grad.any()


def live_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.usefixtures("no_collector")
def test_two_hundred_steps_leave_nothing_behind() -> None:
    """Grids of other sizes in every step, and one that stays."""
    stays = some_grid()
    coords = [some_grid(seed, count).coords for seed, count in enumerate((3, 5, 10, 20, 40))]

    def step(number: int) -> None:
        fine = Grid.from_coords(coords[number % 5], batch_size=3)
        coarse = fine.coarsen(2)
        train(fine, coarse, MAPS["blocks"])
        train(fine, fine, MAPS["even"])
        stays.kernel_map(2, stride=2)
        stays.kernel_map(1, target=fine)
        fine.kernel_map(1, target=stays)

    for number in range(5):
        step(number)
    before = live_tensors(), len(stays._maps), len(stays._own_maps), len(stays._derived)
    for number in range(200):
        step(number)
    assert (live_tensors(), len(stays._maps), len(stays._own_maps), len(stays._derived)) == before


def test_maps_do_not_wait_for_the_device(grid: Grid) -> None:
    coarse = grid.strided(3, 2)
    before = _readback.calls
    for make in MAPS.values():
        assert make(grid, coarse).up.table.shape
    assert _readback.calls == before
