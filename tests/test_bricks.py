"""Bricks: definition, reference, kernels."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.scenes import TINY, scene
from sparsevox import Grid, _readback, morton
from sparsevox.morton import Bricks
from sparsevox.ops import bricks as ops
from sparsevox.reference import bricks as reference
from sparsevox.testing import LIMIT, Voxel, VoxelSet, as_coords, random_batch, row_order, shuffled, voxel_sets
from tests.definitions import bricks as definition


@pytest.fixture
def kernels() -> Any:
    return pytest.importorskip("sparsevox.kernels.bricks", reason="kernels need Triton")


BATCHES = [random_batch(seed, batch_size) for seed, batch_size in ((0, 1), (1, 5), (2, 40), (3, 300))]
HARD = {  # sets that defeat a weak hash, or leave the arrays uneven
    "multiples of 2^12": [(0, x << 12, y << 12, z << 12) for x in range(-8, 8) for y in range(4) for z in range(4)],
    "odd and alone": [(0, 2 * x + 1, 2 * y + 1, 2 * z + 1) for x in range(6) for y in range(6) for z in range(6)],
    "one per brick": [(0, 4 * x, 4 * y, 4 * z) for x in range(6) for y in range(6) for z in range(6)],
    "full block": [(0, x, y, z) for x in range(-4, 4) for y in range(8) for z in range(8)],
    "one shape in every item": [(b, 0, 0, z) for b in range(1024) for z in (0, 4)],
    "corners of the range": [
        (1023, x, y, z) for x in (-LIMIT, LIMIT - 1) for y in (-LIMIT, 0) for z in (-1, LIMIT - 1)
    ],
}


def build(data: VoxelSet, device: torch.device) -> Bricks:
    return Bricks(*(t.to(device) for t in reference.build_bricks(as_coords(data.voxels), data.batch_size)))


def assert_equal(actual: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for name, a, b in zip(Bricks._fields, actual, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.equal(a, b), name


@given(voxel_sets(), st.data())
def test_bricks_hold_the_set_in_row_order(data: VoxelSet, draw: st.DataObject) -> None:
    rows = draw.draw(shuffled(data.voxels))
    dtype = draw.draw(st.sampled_from([torch.int32, torch.int64]))
    bricks = reference.build_bricks(as_coords(rows, dtype), data.batch_size)
    ordered = row_order(data.voxels)
    coords = reference.brick_coords(bricks.keys, bricks.masks, bricks.starts, bricks.rows)
    assert [tuple(v) for v in coords.tolist()] == ordered
    assert bricks.offsets.tolist() == [sum(v[0] < b for v in ordered) for b in range(data.batch_size + 1)]
    masks = [mask & (1 << 64) - 1 for mask in bricks.masks.tolist()]
    found = dict(zip(bricks.keys.tolist(), zip(masks, bricks.starts.tolist(), strict=True), strict=True))
    assert list(found.items()) == list(definition.bricks(data.voxels).items())
    assert (coords.dtype, bricks.starts.dtype, bricks.rows.shape) == (
        torch.int32,
        torch.int32,
        (len(ordered), 0),
    )


@given(voxel_sets(), st.data())
def test_rows_are_found(data: VoxelSet, draw: st.DataObject) -> None:
    bricks = reference.build_bricks(as_coords(data.voxels), data.batch_size)
    rows = row_order(data.voxels)
    far = st.tuples(st.integers(-2, 1100), *[st.integers(-(1 << 20), 1 << 20)] * 3)
    queries = draw.draw(st.lists(far, max_size=5)) + rows[:50]
    queries += [(b, x + dx, y, z) for b, x, y, z in queries for dx in (-1, 1, 1 << 18)]
    found = reference.find_rows(as_coords(queries), bricks.keys, bricks.masks, bricks.starts, None)
    assert found.tolist() == definition.index(rows, queries)


@given(voxel_sets(max_voxels=40))
def test_neighbor_bricks(data: VoxelSet) -> None:
    bricks = reference.build_bricks(as_coords(data.voxels), data.batch_size)
    assert reference.neighbor_bricks(bricks.keys, None).tolist() == definition.neighbor_bricks(data.voxels)


@given(voxel_sets(limits=True))
def test_bounds(data: VoxelSet) -> None:
    bricks = reference.build_bricks(as_coords(data.voxels), data.batch_size)
    found = zip(*(bound.tolist() for bound in ops.bounds(bricks)), strict=True)
    assert list(found) == definition.bounds(data.voxels, data.batch_size)


@given(st.lists(voxel_sets(max_voxels=30), min_size=1, max_size=4))
def test_stack_and_split_are_inverse(parts: list[VoxelSet]) -> None:
    singles = [reference.build_bricks(as_coords(part.voxels), part.batch_size) for part in parts]
    stacked = ops.stack(singles)
    first = [sum(p.batch_size for p in parts[:i]) for i in range(len(parts) + 1)]
    union = {(b + first[i], *ijk) for i, part in enumerate(parts) for b, *ijk in part.voxels}
    assert_equal(stacked, reference.build_bricks(as_coords(union), first[-1]))
    calls = _readback.calls
    for single, piece in zip(singles, ops.split(stacked, list(itertools.pairwise(first))), strict=True):
        assert_equal(piece, single)
    assert _readback.calls == calls + 1


def probes(table: torch.Tensor, keys: torch.Tensor) -> list[int]:
    """Number of slots that the search for each key visits."""
    slot_of_row = torch.empty(keys.shape[0], dtype=torch.int64)
    taken = table >= 0
    slot_of_row[table[taken].long()] = taken.nonzero().squeeze(1)
    distance = (slot_of_row - morton.first_slots(keys, table.shape[0])) % table.shape[0]
    for row, (slot, steps) in enumerate(zip(slot_of_row.tolist(), distance.tolist(), strict=True)):
        assert table[slot] == row
        assert all(table[(slot - step) % table.shape[0]] >= 0 for step in range(steps + 1))
    return (distance + 1).tolist()


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("count", [16, 1000])
def test_table_finds_every_key_at_once(name: str, count: int) -> None:
    keys = reference.build_bricks(as_coords(HARD[name][:count]), 1024).keys
    table = reference.brick_table(keys)
    assert table.shape[0] >= 2 * keys.shape[0]
    assert ops.table_bytes(keys.shape[0]) == 4 * table.shape[0]
    assert sorted(table[table >= 0].tolist()) == list(range(keys.shape[0]))
    assert max(probes(table, keys)) <= 16


def colliding_voxels(count: int) -> list[Voxel]:
    """Voxels whose bricks all start at slot 0: multiples of the inverse of the hash's factor."""
    inverse = pow(morton.GOLDEN, -1, 1 << 64)
    keys = torch.tensor([(j * inverse + (1 << 63)) % (1 << 64) - (1 << 63) for j in range(count * 64)])
    legal = keys[(keys >= -(1 << 57)) & (keys < 1 << 57)]
    return [tuple(v) for v in morton.decode(legal << 6).tolist()]


def test_keys_made_to_collide_are_found(device: torch.device, kernels: Any) -> None:
    voxels = colliding_voxels(400)
    bricks = build(VoxelSet(frozenset(voxels), 1024), device)
    table = reference.brick_table(bricks.keys.cpu())
    assert (morton.first_slots(bricks.keys, table.shape[0]) == 0).all()
    assert max(probes(table, bricks.keys.cpu())) == len(voxels) > 2 * reference.MAX_PROBES
    queries = as_coords(voxels + [(b, x ^ 4, y, z) for b, x, y, z in voxels])
    expected = [row_order(voxels).index(v) for v in voxels] + [-1] * len(voxels)
    for module, moved in ((reference, queries), (kernels, queries.to(device))):
        arrays = [t.to(moved.device) for t in bricks[:3]]
        found = module.find_rows(moved, *arrays, module.brick_table(arrays[0]))
        assert found.tolist() == expected


@pytest.mark.parametrize("method", ["sort", "hash"])
@pytest.mark.parametrize("batch", BATCHES, ids=lambda b: f"B{b.batch_size}")
def test_build_kernels_equal_reference(batch: VoxelSet, method: str, device: torch.device, kernels: Any) -> None:
    rows = list(batch.voxels) + list(batch.voxels)[::3]
    random.Random(0).shuffle(rows)
    coords = as_coords(rows, torch.int32).to(device)
    for batch_size in (batch.batch_size, None, 1024):
        expected = reference.build_bricks(coords.cpu(), batch_size)
        calls = _readback.calls
        actual = kernels.build_bricks(coords, batch_size, method)
        assert _readback.calls == calls + 1
        assert_equal(tuple(t.cpu() for t in actual), expected)


@pytest.mark.parametrize("method", ["sort", "hash"])
@pytest.mark.parametrize("name", [*HARD, *TINY])
def test_build_kernels_on_hard_sets_and_scenes(name: str, method: str, device: torch.device, kernels: Any) -> None:
    coords = as_coords(HARD[name]) if name in HARD else scene(name, TINY[name])
    actual = kernels.build_bricks(coords.to(device), 1024, method)
    assert_equal(tuple(t.cpu() for t in actual), reference.build_bricks(coords, 1024))


@pytest.mark.parametrize("batch", BATCHES[:3], ids=lambda b: f"B{b.batch_size}")
def test_look_up_kernels_equal_reference(batch: VoxelSet, device: torch.device, kernels: Any) -> None:
    bricks = build(batch, device)
    table = kernels.brick_table(bricks.keys)
    coords = kernels.brick_coords(bricks.keys, bricks.masks, bricks.starts, bricks.rows)
    assert torch.equal(coords.cpu(), reference.brick_coords(*(t.cpu() for t in (*bricks[:3], bricks.rows))))
    shifts = torch.tensor([[0, 0, 0, 0], [0, 1, 0, -1], [1, 0, 0, 0], [0, 1 << 18, 0, 0], [0, 0, 0, -(1 << 28)]])
    queries = (coords.cpu()[:, None] + shifts).reshape(-1, 4)
    keys, masks, starts = (t.cpu() for t in bricks[:3])
    expected = reference.find_rows(queries, keys, masks, starts, None)
    for dtype in (torch.int32, torch.int64):
        found = kernels.find_rows(queries.to(device, dtype), *bricks[:3], table)
        assert torch.equal(found.cpu(), expected)
    near = kernels.neighbor_bricks(bricks.keys, table)
    assert torch.equal(near.cpu(), reference.neighbor_bricks(bricks.keys.cpu(), None))


def test_bounds_kernel_equals_reference(bricks: Bricks, agree: Callable[..., Any]) -> None:
    agree("bricks", "brick_bounds", bricks.keys, bricks.masks, bricks.offsets, read_backs=0)


@pytest.mark.parametrize("name", HARD)
def test_table_kernel_holds_every_brick_once(name: str, device: torch.device, kernels: Any) -> None:
    keys = reference.build_bricks(as_coords(HARD[name]), 1024).keys.to(device)
    table = kernels.brick_table(keys).cpu()
    assert sorted(table[table >= 0].tolist()) == list(range(keys.shape[0]))
    assert table.shape == reference.brick_table(keys.cpu()).shape


def test_kernels_take_nothing(device: torch.device, kernels: Any) -> None:
    nothing = torch.empty(0, 4, dtype=torch.int32, device=device)
    for method in ("sort", "hash"):
        bricks = kernels.build_bricks(nothing, 3, method)
        assert_equal(tuple(t.cpu() for t in bricks), reference.build_bricks(nothing.cpu(), 3))
    table = kernels.brick_table(bricks.keys)
    assert kernels.find_rows(torch.zeros(2, 4, dtype=torch.int64, device=device), *bricks[:3], table).tolist() == [
        -1,
        -1,
    ]
    assert kernels.find_rows(nothing, *bricks[:3], table).shape == (0,)
    assert kernels.brick_coords(*bricks[:3], bricks.rows).shape == (0, 4)
    assert kernels.neighbor_bricks(bricks.keys, table).shape == (0, 27)


@pytest.mark.parametrize("method", ["sort", "hash"])
@pytest.mark.parametrize(
    ("batch_size", "bad"),
    [(2, (2, 0, 0, 0)), (None, (1024, 0, 0, 0)), (2, (-1, 0, 0, 0)), (2, (1, 0, LIMIT, 0))],
)
def test_first_offender_is_named(
    method: str, batch_size: int | None, bad: tuple[int, ...], device: torch.device, kernels: Any
) -> None:
    coords = torch.zeros(300, 4, dtype=torch.int64, device=device)
    coords[[70, 123]] = torch.tensor(bad, device=device)
    for module in (reference, kernels):
        with pytest.raises(morton.VoxelError) as error:
            module.build_bricks(coords, batch_size, method)
        assert error.value.index == 70


def test_look_ups_with_and_without_a_hash_table_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    coords = torch.randint(-9, 9, (300, 3), generator=torch.Generator().manual_seed(0))
    queries = torch.cat([coords, coords + 1, torch.tensor([[1 << 17, 0, 0], [0, -1 - (1 << 17), 0]])])
    found = []
    for few_bricks in (0, 1 << 20):
        monkeypatch.setattr("sparsevox.ops.bricks.FEW_BRICKS", few_bricks)
        found.append(Grid.from_coords(coords).index(queries))
    assert torch.equal(*found)
    assert (found[0][:300] >= 0).all()
    assert (found[0][-2:] == -1).all()
