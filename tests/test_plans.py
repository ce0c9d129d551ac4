"""Plans: definition, reference, kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevox.conv_geometry import Geometry
from sparsevox.morton import Bricks
from sparsevox.plans import TILE_ROWS, pair_block
from sparsevox.reference import plans as reference
from sparsevox.reference.neighbors import kernel_table
from tests.definitions import plans as definition

SHAPES = {"K=1": (1, 300), "K=8": (8, 1000), "K=27": (27, 700), "K=62": (62, 150), "K=63": (63, 150), "no rows": (5, 0)}


def random_table(taps: int, rows: int, inputs: int, seed: int = 0, share: float = 0.4) -> Tensor:
    """A table int32 [taps, rows] in which no input row comes twice at a tap, and some taps and rows have none."""
    generator = torch.Generator().manual_seed(seed)
    width = max(rows, inputs)
    drawn = torch.stack([torch.randperm(width, generator=generator) for _ in range(taps)])[:, :rows]
    often = share * 2 * torch.rand(taps, 1, generator=generator) * torch.rand(1, rows, generator=generator) ** 0.3
    absent = (torch.rand(taps, rows, generator=generator) > often) | (drawn >= inputs)
    absent[:, rows // 3 : rows // 2] = True
    absent[taps // 2] |= taps > 2
    return torch.where(absent, -1, drawn).int()


def table_of(bricks: Bricks) -> Tensor:
    """The table of neighbors, on the CPU."""
    keys, masks, starts, _, rows = (t.cpu() for t in bricks)
    geometry = Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    return kernel_table(keys, masks, starts, rows, None, keys, masks, starts, rows, *geometry)


@pytest.fixture(params=SHAPES)
def table(request: pytest.FixtureRequest, device: torch.device) -> Tensor:
    taps, rows = SHAPES[request.param]
    return random_table(taps, rows, inputs=rows // 2 + 40).to(device)


def test_adjoint_table_turns_pairs_around() -> None:
    table = random_table(6, 80, 50)
    turned = reference.adjoint_table(table, torch.empty(50, 0))
    assert turned.tolist() == definition.adjoint_table(table.tolist(), 50)
    assert torch.equal(reference.adjoint_table(turned, torch.empty(80, 0)), table)


def test_pairs_are_sorted_by_block_tap_and_row() -> None:
    table = random_table(6, 80, 50)
    found = [part.tolist() for part in reference.pair_lists(table, 32)]
    assert found == list(definition.pair_lists(table.tolist(), 32))


def test_tiles_have_the_taps_of_their_rows() -> None:
    table = random_table(9, 400, 300)
    order, taps, lengths = reference.row_plan(table)
    assert sorted(order.tolist()) == list(range(400))
    for tile, (listed, length) in enumerate(zip(taps.tolist(), lengths.tolist(), strict=True)):
        rows = order[tile * TILE_ROWS : (tile + 1) * TILE_ROWS].long()
        active = [t for t in range(9) if (table[t, rows] >= 0).any()]
        assert listed == active + [0] * (9 - len(active))
        assert length == len(active)


def test_rows_are_sorted_by_their_place_in_the_gray_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "WINDOW_ROWS", 64)
    table = (random_table(5, 200, 150) >= 0).int() - 1
    order, _, _ = reference.row_plan(table)
    assert order.tolist() == definition.row_order(table.tolist(), 64)


def test_a_plan_needs_few_taps(device: torch.device) -> None:
    """Half of the rows have the even taps, the others the odd ones, and they alternate."""
    has = torch.arange(8)[:, None] % 2 == torch.arange(1024) % 2
    _, _, lengths = reference.row_plan(has.int() - 1)
    assert lengths.tolist() == [4] * 8


@pytest.mark.triton36
def test_kernels_equal_reference_on_tables(table: Tensor, agree: Callable[..., Any]) -> None:
    inputs = table.new_empty(table.shape[1] // 2 + 40, 0)
    agree("plans", "adjoint_table", table, inputs, read_backs=0)
    agree("plans", "row_plan", table, read_backs=0)
    for block in (64, pair_block(table.shape[0])):
        agree("plans", "pair_lists", table, block)


def test_kernels_equal_reference_on_grids(bricks: Bricks, device: torch.device, agree: Callable[..., Any]) -> None:
    table = table_of(bricks).to(device)
    agree("plans", "adjoint_table", table, bricks.rows, read_backs=0)
    agree("plans", "pair_lists", table, pair_block(27))
    agree("plans", "row_plan", table, read_backs=0)


def test_kernels_equal_reference_over_windows(
    device: torch.device, agree: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("kernels", "reference"):
        monkeypatch.setattr(f"sparsevox.{folder}.plans.WINDOW_ROWS", 256)
    for taps in (8, 27):
        agree("plans", "row_plan", random_table(taps, 1100, 900).to(device), read_backs=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="block sizes of the interpreter, which is not used with a GPU")
def test_many_small_programs(agree: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsevox.kernels._launch.INTERPRETER_LANES", 1024)
    table = random_table(5, 1500, 1600)
    agree("plans", "adjoint_table", table, torch.empty(1600, 0), read_backs=0)
    agree("plans", "pair_lists", table, 512)
    agree("plans", "row_plan", table, read_backs=0)
