"""Batches that fill a voxel budget, and collation."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

import sparsevox as sv
from sparsevox.data import VoxelBudgetSampler

SIZES = st.lists(st.integers(0, 60), max_size=40)


def epoch_of(ranks, epoch):
    for sampler in ranks:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in ranks]


@given(SIZES, st.integers(1, 100), st.integers(0, 5), st.integers(1, 9))
def test_every_item_comes_once_and_no_batch_is_over_the_budget(sizes, budget, epoch, most):
    sampler = VoxelBudgetSampler(sizes, budget, seed=3, max_items=most)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    assert sorted(item for batch in batches for item in batch) == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= most
        assert sum(sizes[item] for item in batch) <= budget or len(batch) == 1


@given(SIZES, st.integers(1, 100))
def test_a_batch_ends_only_where_the_next_item_does_not_fit(sizes, budget):
    batches = list(VoxelBudgetSampler(sizes, budget))
    for batch, following in itertools.pairwise(batches):
        assert sum(sizes[item] for item in batch) + sizes[following[0]] > budget


def test_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = VoxelBudgetSampler([1] * 50, 7, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    seen = [order(seed, epoch) for seed in (-1, 0, 1) for epoch in range(3)]
    assert all(a != b for n, a in enumerate(seen) for b in seen[:n])
    assert list(VoxelBudgetSampler([2, 3, 4, 1], 5, shuffle=False)) == [[0, 1], [2, 3]]


def test_an_item_above_the_budget():
    sizes = [4, 11, 5]
    assert list(VoxelBudgetSampler(sizes, 10, shuffle=False)) == [[0], [1], [2]]
    assert list(VoxelBudgetSampler(sizes, 10, shuffle=False, oversize="drop")) == [[0, 2]]
    with pytest.raises(ValueError, match=r"sizes\[1\] must lie in \[0, 10\], got 11"):
        VoxelBudgetSampler(sizes, 10, oversize="error")


@given(SIZES, st.integers(1, 100), st.integers(1, 7), st.integers(0, 3))
def test_ranks_get_equally_many_batches_that_cover_all_items(sizes, budget, replicas, epoch):
    alone = VoxelBudgetSampler(sizes, budget)
    alone.set_epoch(epoch)
    whole = list(alone)
    ranks = [VoxelBudgetSampler(sizes, budget, rank=rank, replicas=replicas) for rank in range(replicas)]
    shares = epoch_of(ranks, epoch)
    assert len({len(share) for share in shares}) == 1
    dealt = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert dealt[: len(whole)] == whole
    assert len(dealt) - len(whole) < replicas
    assert all(batch in whole for batch in dealt)


def test_ranks_are_those_of_the_process_group(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert list(VoxelBudgetSampler([1] * 5, 1, shuffle=False)) == [[1], [4]]


def test_an_interrupted_run_resumes():
    sampler = VoxelBudgetSampler([1] * 20, 3, rank=1, replicas=2)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, start=2)
    assert list(sampler) == whole[2:]
    assert len(sampler) == len(whole) - 2
    sampler.set_epoch(4, start=99)
    assert (list(sampler), len(sampler)) == ([], 0)
    sampler.set_epoch(4)
    assert list(sampler) == whole


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": 0}, ValueError, "budget must be positive, got 0"),
        ({"budget": 1.5}, TypeError, "budget must be an int, got 1.5"),
        ({"oversize": "split"}, ValueError, "oversize must be 'alone', 'drop' or 'error', got 'split'"),
        ({"max_items": 0}, ValueError, r"max_items must be between 1 and 1024, got 0"),
        ({"max_items": 1025}, ValueError, r"max_items must be between 1 and 1024, got 1025"),
        ({"rank": 2, "replicas": 2}, ValueError, r"rank must be in \[0, 2\), got 2"),
        ({"sizes": [1, -1]}, ValueError, r"sizes\[1\] must lie in \[0, 9\], got -1"),
        ({"sizes": [1, 2.0]}, TypeError, r"sizes\[1\] must be an int, got 2.0"),
        ({"seed": "a"}, TypeError, "seed must be an int, got 'a'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        VoxelBudgetSampler(**{"sizes": [1], "budget": 9} | arguments)


def test_bad_epochs():
    sampler = VoxelBudgetSampler([1], 1)
    with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
        sampler.set_epoch(-1)
    with pytest.raises(ValueError, match="start must not be negative, got -2"):
        sampler.set_epoch(0, start=-2)


class Rods(Dataset[sv.Grid]):
    def __getitem__(self, item):
        return sv.Grid.full((0, 0, 0), (item + 1, 1, 1))


def test_with_a_loader():
    sampler = VoxelBudgetSampler([n + 1 for n in range(9)], 10, seed=1)
    loader = DataLoader(Rods(), batch_sampler=sampler, collate_fn=sv.collate)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(sampler)
        assert max(batch.num_voxels for batch in batches) <= 10
        assert sum(batch.num_voxels for batch in batches) == 45
