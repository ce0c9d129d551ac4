"""Bad input to convolutions, kernel maps and their grids: what the message names, and that nothing is remembered."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsevox import Grid, ops
from sparsevox.testing import LIMIT

GRID = Grid.from_coords(torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [1, -4, 5, 6]]), batch_size=2, voxel_size=0.5)
COARSE = GRID.coarsen(2).prune(torch.tensor([True, True, False]))
MAP = GRID.kernel_map(3, stride=2, target=COARSE)
FEATS, SHORT = torch.zeros(3, 4), torch.zeros(2, 4)
WEIGHT = torch.zeros(6, 4, 3, 3, 3)
FACTOR = 1 << 18

VERBS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    *[(ValueError, f"kernel_size; between 1 and 7; {k}", {"kernel_size": k}) for k in (0, 8, -3, (3, 0, 3), (3, 3, 8))],
    (ValueError, "kernel_size; one number or three; (3, 3)", {"kernel_size": (3, 3)}),
    *[(TypeError, f"kernel_size; int; {k!r}", {"kernel_size": k}) for k in (3.0, "3", None, True)],
    *[(ValueError, f"stride; between 1 and {FACTOR}; {s}", {"stride": s}) for s in (0, -1, FACTOR + 1, (2, 2, 0))],
    *[(TypeError, f"stride; int; {s!r}", {"stride": s}) for s in (2.0, "2", None)],
    *[(ValueError, f"dilation; between 1 and {FACTOR}; {d}", {"dilation": d}) for d in (0, -1, FACTOR + 1)],
    (TypeError, "dilation; int; 1.5", {"dilation": 1.5}),
    *[(ValueError, f"padding; between 0 and {FACTOR}; {p}", {"padding": p}) for p in (-1, FACTOR + 1, (0, -1, 0))],
    (TypeError, "padding; int; 0.5", {"padding": 0.5}),
    (ValueError, "padding; one number or three; (1, 1)", {"padding": (1, 1)}),
]

MAPS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "target; Grid; int", {"target": 3}),
    (TypeError, "target; Grid; Tensor", {"target": GRID.coords}),
    (ValueError, "target; batch size; 2; 3", {"target": Grid.empty(3, voxel_size=0.5)}),
    (ValueError, "target; (1, 1, 1); 0.5; 1.0", {"target": COARSE}),
    (ValueError, "target; (2, 2, 2); 0.5; 0.5", {"target": GRID, "stride": 2}),
    (ValueError, "target; (2, 1, 2); 0.5; 1.0", {"target": COARSE, "stride": (2, 1, 2)}),
]

CONV: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "feats; 4 channels; [6, 4, 3, 3, 3]; [3, 5]", {"feats": torch.zeros(3, 5)}),
    (ValueError, "feats; 8 channels; [3, 4]", {"groups": 2}),
    (ValueError, "feats; 3 rows; [2, 4]", {"feats": SHORT}),
    (ValueError, "feats; [N, C]; [12]", {"feats": FEATS.flatten()}),
    (TypeError, "feats; floating-point; int64", {"feats": FEATS.long()}),
    (TypeError, "feats; torch.Tensor; list", {"feats": [[0.0] * 4] * 3}),
    (TypeError, "weight; floating-point; int32", {"weight": WEIGHT.int()}),
    (TypeError, "weight; torch.Tensor; None", {"weight": None}),
    (ValueError, "weight; (3, 3, 3); [6, 4, 3, 3, 1]", {"weight": WEIGHT[..., :1]}),
    (ValueError, "weight; (3, 3, 3); [6, 4, 27]", {"weight": WEIGHT.flatten(2)}),
    (ValueError, "groups; divide; 6; 4", {"groups": 4}),
    (ValueError, "groups; at least 1; 0", {"groups": 0}),
    (ValueError, "groups; at least 1; -1", {"groups": -1}),
    (TypeError, "groups; int; 1.0", {"groups": 1.0}),
    (ValueError, "bias; [6]; [4]", {"bias": torch.zeros(4)}),
    (ValueError, "bias; [6]; [1, 6]", {"bias": torch.zeros(1, 6)}),
    (TypeError, "bias; floating-point; bool", {"bias": torch.ones(6, dtype=torch.bool)}),
    (TypeError, "bias; torch.Tensor; float", {"bias": 0.0}),
]

TRANSPOSE: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "feats; 6 channels; [6, 4, 3, 3, 3]; [2, 4]", {"feats": SHORT}),
    (ValueError, "feats; 2 rows; [3, 6]", {"feats": torch.zeros(3, 6)}),
    (ValueError, "bias; [4]; [6]", {"bias": torch.zeros(6)}),
    (ValueError, "bias; [8]; [4]", {"bias": torch.zeros(4), "groups": 2}),
    (ValueError, "groups; divide; 6; 4", {"groups": 4}),
]


def check_message(call: Callable[..., object], error: type[Exception], parts: str, options: dict[str, Any]) -> None:
    with pytest.raises(error) as caught:
        call(**options)
    message = str(caught.value)
    missing = [part for part in parts.split("; ") if part not in message]
    assert not missing, f"{missing} not in {message!r}"
    assert "\n" not in message


@pytest.mark.parametrize(("error", "parts", "options"), VERBS, ids=str)
@pytest.mark.parametrize("verb", ["kernel_map", "strided", "generative"])
def test_bad_geometries(verb: str, error: type[Exception], parts: str, options: dict[str, Any]) -> None:
    grid = Grid.from_coords(GRID.coords)
    check_message(getattr(grid, verb), error, parts, {"kernel_size": 3} | options)
    assert not any((grid._own_maps, grid._maps, grid._derived))


@pytest.mark.parametrize(("error", "parts", "options"), MAPS, ids=str)
def test_bad_targets(error: type[Exception], parts: str, options: dict[str, Any]) -> None:
    check_message(GRID.kernel_map, error, parts, {"kernel_size": 3} | options)


def test_targets_may_lie_elsewhere_and_differ_by_little() -> None:
    for voxel_size in (1.0, 1.00005, (1.0, 0.99995, 1.0)):
        target = Grid.from_coords(COARSE.coords, batch_size=2, voxel_size=voxel_size, origin=100.0)
        assert torch.equal(GRID.kernel_map(3, stride=2, target=target).table, MAP.table)


@pytest.mark.parametrize(("error", "parts", "options"), CONV, ids=str)
def test_bad_convolutions(error: type[Exception], parts: str, options: dict[str, Any]) -> None:
    good: dict[str, Any] = {"feats": FEATS, "weight": WEIGHT, "bias": torch.zeros(6), "kernel_map": MAP}
    assert ops.conv3d(**good).shape == (2, 6)
    check_message(ops.conv3d, error, parts, good | options)


@pytest.mark.parametrize(("error", "parts", "options"), TRANSPOSE, ids=str)
def test_bad_transposed_convolutions(error: type[Exception], parts: str, options: dict[str, Any]) -> None:
    good: dict[str, Any] = {"feats": torch.zeros(2, 6), "weight": WEIGHT, "bias": torch.zeros(4), "kernel_map": MAP}
    assert ops.conv_transpose3d(**good).shape == (3, 4)
    check_message(ops.conv_transpose3d, error, parts, good | options)


def test_reaching_out_of_range_is_named() -> None:
    far = Grid.from_coords(torch.tensor([[LIMIT - 1, 0, 0], [0, 0, 0]]))
    for verb, stride in (("strided", 1), ("generative", 1), ("generative", 2)):
        with pytest.raises(ValueError, match=r"\(0, \d+, .*\) out of the range \[-131072, 131071\]"):
            getattr(far, verb)(3, stride)
    assert far.kernel_map(3).num_coarse == 2


@pytest.mark.gpu
def test_two_devices_are_named() -> None:
    with pytest.raises(ValueError, match="feats must be on the device of the grid, cpu, got cuda"):
        ops.conv3d(FEATS.cuda(), WEIGHT, None, MAP)
    with pytest.raises(ValueError, match="weight must be on the device of the grid, cpu, got cuda"):
        ops.conv3d(FEATS, WEIGHT.cuda(), None, MAP)
    with pytest.raises(ValueError, match="bias must be on the device of the grid, cpu, got cuda"):
        ops.conv3d(FEATS, WEIGHT, torch.zeros(6).cuda(), MAP)
    with pytest.raises(ValueError, match="target must be on the device of this grid, cpu, got cuda"):
        GRID.kernel_map(3, target=GRID.cuda())
