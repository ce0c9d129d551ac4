"""Grids as objects: which are the same, what shares memory, when it returns, when the host waits for the device."""

import copy
import gc
import itertools
import math
import pickle
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, _readback
from sparsevox.testing import as_coords, random_batch

Verb = Callable[[Grid], Grid]

VERBS: dict[str, Verb] = {
    "coarsen by 2": lambda g: g.coarsen(2),
    "coarsen by 8": lambda g: g.coarsen(8),
    "coarsen by 3": lambda g: g.coarsen(3),
    "coarsen by (2, 2, 1)": lambda g: g.coarsen((2, 2, 1)),
    "subdivide by 2": lambda g: g.subdivide(2),
    "subdivide by 2, some": lambda g: g.subdivide(2, g.ijk[:, 2] > 0),
    "subdivide by 2, children": lambda g: g.subdivide(2, torch.eye(8, dtype=torch.bool)[g.ijk[:, 0] & 7]),
    "subdivide by 4": lambda g: g.subdivide(4),
    "subdivide by (2, 2, 1)": lambda g: g.subdivide((2, 2, 1)),
    "dilate": lambda g: g.dilate(1),
    "dilate up": lambda g: g.dilate(lower=0, upper=(1, 2, 3)),
    "dilate by nothing": lambda g: g.dilate(0),
    "dilate by a stencil": lambda g: g.dilate(stencil=torch.ones(2, 1, 3, dtype=torch.bool)),
    "erode": lambda g: g.erode((1, 0, 0)),
    "erode by nothing": lambda g: g.erode(0),
    "prune": lambda g: g.prune(g.ijk[:, 0] > 0),
    "prune nothing": lambda g: g.prune(g.ijk[:, 0] == g.ijk[:, 0]),
    "crop": lambda g: g.crop(-2, 5),
    "crop nothing": lambda g: g.crop(-(1 << 17), 1 << 17),
    "or": lambda g: g | g,
    "and": lambda g: g & g,
    "sub": lambda g: g - g,
    "xor": lambda g: g ^ g,
    "item": lambda g: g[1],
    "slice": lambda g: g[1:],
    "all items": lambda g: g[:],
}
COPIES: dict[str, Verb] = {
    "stack": lambda g: Grid.stack([g, g]),
    "stack of one": lambda g: Grid.stack([g]),
    "deep copy": copy.deepcopy,
    "pickle": lambda g: pickle.loads(pickle.dumps(g)),
}
CONSTRUCTORS: dict[str, Callable[[], Grid]] = {
    "from_coords": lambda: Grid.from_coords(torch.tensor([[0, 1, 2, 3]]).expand(99, 4)),
    "from_coords, batch size": lambda: Grid.from_coords(torch.tensor([[0, 1, 2, 3]]), batch_size=3),
    "from_points": lambda: Grid.from_points(torch.zeros(99, 3), voxel_size=1.0),
    "from_dense": lambda: Grid.from_dense(torch.ones(2, 5, 5, 5, dtype=torch.bool), lower=-2),
    "full": lambda: Grid.full(-3, 9, batch_size=2),
}


def some_grid(seed: int = 4) -> Grid:
    case = random_batch(seed, 3, count=200, kinds=("clustered", "solid", "linear"))
    return Grid.from_coords(as_coords(case.voxels), batch_size=3, voxel_size=0.5, origin=1.0)


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


def storages(grid: Grid) -> set[int]:
    return {array.untyped_storage().data_ptr() for array in grid.bricks if array.numel()}


def watch(grid: Grid) -> list[Callable[[], object]]:
    """Weak references to a grid and to everything it holds in memory."""
    return [weakref.ref(grid), *(weakref.ref(array) for array in grid.bricks)]


def alive(watched: list[Callable[[], object]]) -> int:
    return sum(ref() is not None for ref in watched)


@pytest.mark.parametrize(
    "calls",
    [
        (lambda g: g.coarsen(), lambda g: g.coarsen(2), lambda g: g.coarsen((2, 2, 2))),
        (lambda g: g.coarsen(3), lambda g: g.coarsen([3, 3, 3])),
        (lambda g: g.coarsen(1), lambda g: g.coarsen((1, 1, 1))),
        (lambda g: g.dilate(), lambda g: g.dilate(1), lambda g: g.dilate(lower=-1, upper=(1, 1, 1))),
        (lambda g: g.dilate((0, 2, 5)), lambda g: g.dilate(lower=(0, -2, -5), upper=(0, 2, 5))),
        (lambda g: g.coarsen(2).dilate(1), lambda g: g.coarsen(2).dilate(1)),
    ],
)
def test_equal_calls_give_the_same_grid_while_it_lives(grid: Grid, calls: tuple[Verb, ...]) -> None:
    held = grid.coarsen(2)
    first = calls[0](grid)
    assert all(call(grid) is first for call in calls)
    assert held is grid.coarsen(2)


def test_other_calls_give_other_grids(grid: Grid) -> None:
    made = [grid.coarsen(2), grid.coarsen(4), grid.coarsen((2, 2, 1)), grid.dilate(1), grid.dilate(2)]
    made += [grid.dilate(lower=0, upper=1), grid.dilate(lower=-1, upper=0), some_grid().coarsen(2)]
    assert len(set(map(id, made))) == len(made)


def test_to_where_it_is_gives_the_grid_itself(grid: Grid) -> None:
    assert grid.to("cpu") is grid.to(torch.device("cpu"), non_blocking=True) is grid.cpu() is grid


@pytest.mark.gpu
def test_to_the_gpu_and_back(grid: Grid) -> None:
    there = grid.cuda()
    assert there.device.type == "cuda"
    assert there.to("cuda") is there
    assert there.cpu().same_voxels(grid)
    assert there.cpu().coords.equal(grid.coords)
    assert not there.same_voxels(grid)
    assert all(array.is_pinned() for array in grid.pin_memory().bricks if array.numel())


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("make", [some_grid, lambda: Grid.empty(0), lambda: Grid.empty(3)])
def test_pickled_grids_come_back(make: Callable[[], Grid], protocol: int) -> None:
    grid = make()
    derived = grid.coarsen(2)
    twin = pickle.loads(pickle.dumps(grid, protocol))
    assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(twin.bricks, grid.bricks, strict=True))
    assert (twin.voxel_size, twin.origin) == (grid.voxel_size, grid.origin)
    assert twin.coarsen(2).same_voxels(derived)
    assert twin.coarsen(2) is not derived
    assert twin.index(grid.coords).equal(torch.arange(grid.num_voxels))


def test_a_pickled_item_holds_nothing_of_its_batch() -> None:
    batch = Grid.full(0, 40, batch_size=20)
    assert len(pickle.dumps(batch[3])) < len(pickle.dumps(batch)) / 10


def test_grids_are_equal_to_themselves_only(grid: Grid) -> None:
    assert len({grid, copy.copy(grid), some_grid()}) == 3
    assert copy.copy(grid).same_voxels(grid)


@pytest.mark.parametrize("name", VERBS)
def test_verbs_leave_the_grid_as_it_was(grid: Grid, name: str) -> None:
    before = [array.clone() for array in grid.bricks]
    VERBS[name](grid)
    assert all(a.equal(b) for a, b in zip(before, grid.bricks, strict=True))


@pytest.mark.parametrize("name", [*VERBS, *COPIES])
def test_results_share_no_memory_with_the_grid(grid: Grid, name: str) -> None:
    assert not storages((VERBS | COPIES)[name](grid)) & storages(grid)


def test_later_changes_of_the_input_do_not_reach_the_grid() -> None:
    coords, mask = torch.tensor([[0, 7, 8, 9]]), torch.ones(1, 2, 2, 2, dtype=torch.bool)
    listed, dense = Grid.from_coords(coords), Grid.from_dense(mask)
    coords.zero_()
    mask.zero_()
    assert listed.coords.tolist() == [[0, 7, 8, 9]]
    assert dense.num_voxels == 8


def test_what_queries_return_belongs_to_the_caller(grid: Grid) -> None:
    expected = grid.coords
    for result in (grid.coords, grid.ijk, grid.batch, *grid.bounds(), grid.index(expected)):
        result.zero_()
    assert grid.coords.equal(expected)


@pytest.mark.parametrize(
    "name",
    ["coords", "ijk", "batch", "offsets", "num_voxels", "num_bricks", "batch_size", "device", "nbytes"],
)
def test_attributes_cannot_be_set(grid: Grid, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(grid, name, getattr(grid, name))


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", [*VERBS, *COPIES])
def test_memory_returns_when_the_last_user_goes(name: str) -> None:
    grid = some_grid()
    derived = (VERBS | COPIES)[name](grid)
    again = derived.coarsen(2)
    watched = [watch(g) for g in (grid, derived, again)]
    parent_bytes = [array.clone() for array in derived.bricks]
    del grid
    assert alive(watched[0]) == 0
    assert all(a.equal(b) for a, b in zip(parent_bytes, derived.bricks, strict=True))
    del again
    assert alive(watched[2]) == 0
    del derived
    assert alive(watched[1]) == 0


@pytest.mark.usefixtures("no_collector")
def test_derived_grids_die_before_their_parent() -> None:
    grid = some_grid()
    for make in (lambda: grid.coarsen(2), lambda: grid.coarsen(3), lambda: grid.dilate(1)):
        derived = make()
        watched = watch(derived)
        assert make() is derived
        del derived
        assert alive(watched) == 0
        assert make().num_voxels


@pytest.mark.usefixtures("no_collector")
def test_failures_keep_nothing_alive() -> None:
    grid = some_grid()
    watched = watch(grid)
    bad: list[Callable[[Grid], object]] = [
        lambda g: g.subdivide(1 << 18),
        lambda g: g.prune(torch.ones(g.num_voxels + 1, dtype=torch.bool)),
        lambda g: g.index(torch.zeros(1, 4)),
        lambda g: g.coarsen(0),
        lambda g: g | Grid.empty(7),
    ]
    for call in bad:
        with pytest.raises((TypeError, ValueError)) as caught:
            call(grid)
        del caught
    del grid
    assert alive(watched) == 0


def holds_only_itself(array: Tensor) -> bool:
    return array.untyped_storage().nbytes() <= array.numel() * array.element_size() + 64


@pytest.mark.parametrize("name", [*VERBS, *COPIES])
def test_arrays_hold_no_more_than_their_own_size(grid: Grid, name: str) -> None:
    result = (VERBS | COPIES)[name](grid)
    assert all(map(holds_only_itself, result.bricks))
    assert all(map(holds_only_itself, (result.coords, *result.bounds(), result.index(result.coords))))


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_built_arrays_hold_no_more_than_their_own_size(name: str) -> None:
    assert all(map(holds_only_itself, CONSTRUCTORS[name]().bricks))


def test_iteration_cuts_a_batch_without_holding_it() -> None:
    for item in Grid.full(0, 20, batch_size=30):
        assert all(map(holds_only_itself, item.bricks))
        assert item.num_voxels == 8000


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000, 1024, 1025])
def test_nbytes_counts_keys_masks_starts_and_the_hash_table(count: int) -> None:
    corners = [(0, 4 * x, 4 * y, 4 * z) for x, y, z in itertools.product(range(11), repeat=3)]
    grid = Grid.from_coords(as_coords(corners[:count]))
    assert grid.num_bricks == count
    capacity = max(16, 2 ** math.ceil(math.log2(2 * count))) if count else 16
    assert grid.nbytes == count * (8 + 8 + 4) + 4 * capacity
    table = torch.ops.sparsevox.brick_table(grid.bricks.keys)
    assert (table.numel(), table.element_size()) == (capacity, 4)


def live_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.usefixtures("no_collector")
def test_repeated_work_leaves_nothing_behind(grid: Grid) -> None:
    def work() -> None:
        other = some_grid()
        for name, verb in (VERBS | COPIES).items():
            assert verb(grid if "by 3" in name else other) is not None
        list(other)
        other.bounds()
        other.index(other.coords)

    for _ in range(2):
        work()
    before = live_tensors(), len(grid._derived)
    for _ in range(100 // len(VERBS) + 1):
        work()
    assert (live_tensors(), len(grid._derived)) == before


def read_backs(call: Callable[[], object]) -> int:
    before = _readback.calls
    call()
    return _readback.calls - before


@pytest.mark.parametrize("name", VERBS)
def test_the_host_waits_once_for_each_built_grid(grid: Grid, name: str) -> None:
    assert read_backs(lambda: VERBS[name](grid)) == 1


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_the_host_waits_once_for_each_constructed_grid(name: str) -> None:
    assert read_backs(CONSTRUCTORS[name]) == 1


def test_the_host_waits_once_for_all_items(grid: Grid) -> None:
    assert read_backs(lambda: list(grid)) == 1


@pytest.mark.parametrize(
    "query",
    [
        lambda g: (
            g.coords,
            g.ijk,
            g.batch,
            g.offsets,
            g.num_voxels,
            g.num_bricks,
            g.batch_size,
            g.nbytes,
            repr(g),
        ),
        lambda g: g.bounds(),
        lambda g: g.contains(g.coords),
        lambda g: g.to_ijk(g.to_world(g.ijk)),
        lambda g: Grid.stack([g, g]),
        lambda g: Grid.empty(3),
        lambda g: g.to("cpu"),
    ],
)
def test_the_host_does_not_wait_for_queries(grid: Grid, query: Callable[[Grid], object]) -> None:
    assert read_backs(lambda: query(grid)) == 0
