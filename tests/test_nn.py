"""Modules: `torch.nn` on dense volumes, and what every module has in common."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsevox as sv
from sparsevox.testing import as_coords, random_batch

SIDE = 6


def full(channels: int, batch_size: int = 2, dtype: torch.dtype = torch.float64) -> tuple[sv.SparseTensor, Tensor]:
    """A batch of full cubes and the same as a volume."""
    volume = torch.randn(batch_size, channels, SIDE, SIDE, SIDE, dtype=dtype)
    return sv.SparseTensor.from_dense(volume), volume


def ragged(channels: int = 8, seed: int = 3, dtype: torch.dtype = torch.float32) -> sv.SparseTensor:
    """Clouds of different sizes, one of them empty."""
    data = random_batch(seed, 4, count=60, kinds=("clustered", "solid", "planar", "empty"))
    grid = sv.Grid.from_coords(as_coords(data.voxels), batch_size=4)
    return sv.SparseTensor(grid, torch.randn(grid.num_voxels, channels, dtype=dtype))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "Conv3d": lambda: sv.nn.Conv3d(8, 4, 3),
    "Conv3d, one tap": lambda: sv.nn.Conv3d(8, 4, 1),
    "Conv3d, strided": lambda: sv.nn.Conv3d(8, 4, 3, stride=2),
    "ConvTranspose3d": lambda: sv.nn.ConvTranspose3d(8, 4, 2, stride=2),
    "MaxPool3d": lambda: sv.nn.MaxPool3d(2),
    "AvgPool3d": lambda: sv.nn.AvgPool3d(3, stride=2),
    "SumPool3d": lambda: sv.nn.SumPool3d((2, 2, 1)),
    "Upsample": lambda: sv.nn.Upsample(2),
    "BatchNorm": lambda: sv.nn.BatchNorm(8),
    "SyncBatchNorm": lambda: sv.nn.SyncBatchNorm(8),
    "GroupNorm": lambda: sv.nn.GroupNorm(2, 8),
    "InstanceNorm": lambda: sv.nn.InstanceNorm(8, affine=True),
    "LayerNorm": lambda: sv.nn.LayerNorm(8),
    "RMSNorm": lambda: sv.nn.RMSNorm(8),
    "Linear": lambda: sv.nn.Linear(8, 4),
    "Attention": lambda: sv.nn.Attention(8, 2),
    "Attention, windowed": lambda: sv.nn.Attention(8, 2, window=16, shift=8),
    "SpaceToChannel": lambda: sv.nn.SpaceToChannel(2),
    "ChannelToSpace": lambda: sv.nn.ChannelToSpace(2),
    "Sequential": lambda: sv.nn.Sequential(sv.nn.Conv3d(8, 4, 3), nn.BatchNorm1d(4), nn.ReLU()),
}


def test_every_module_is_tried() -> None:
    elsewhere = {"GlobalPool", "Prune", "convert_weight"}
    assert {name.split(",")[0] for name in MODULES} | elsewhere == set(sv.nn.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_takes_and_returns_a_sparse_tensor(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    x = ragged()
    x.feats.requires_grad_()
    y = module(x)
    assert isinstance(y, sv.SparseTensor)
    assert torch.isfinite(y.feats).all()
    y.feats.square().sum().backward()
    assert x.feats.grad is not None
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    if not isinstance(module, nn.Sequential):
        with pytest.raises(TypeError, match=r"takes a sparsevox\.SparseTensor, got Tensor"):
            module(x.feats)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("batch_size", [0, 3])
def test_no_voxels_are_legal(name: str, batch_size: int) -> None:
    module = MODULES[name]()
    x = sv.SparseTensor(sv.Grid.empty(batch_size), torch.zeros(0, 8, requires_grad=True))
    if name == "Sequential":  # torch's own batch norm refuses no rows
        module.eval()
    y = module(x)
    assert (y.shape[0], y.batch_size) == (0, batch_size)
    y.feats.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_global_pool_returns_one_row_per_grid() -> None:
    x = ragged()
    for reduce in ("mean", "max", "sum", "min"):
        pooled = sv.nn.GlobalPool(reduce)(x)
        for item, part in zip(pooled, x.unbind(), strict=True):
            values = part.feats if len(part.feats) else torch.zeros(1, 8)
            expected = getattr(values, {"max": "amax", "min": "amin"}.get(reduce, reduce))(0)
            torch.testing.assert_close(item, expected)


# Convolutions are torch's


CONVS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 5, "padding": 2, "groups": 2},
    {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "bias": False},
    {"kernel_size": 1},
    {"kernel_size": 1, "groups": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": (3, 1, 1), "stride": (2, 1, 1)},
]


@pytest.mark.parametrize("options", CONVS, ids=str)
def test_state_dicts_of_torch_load_and_give_the_same_output(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv3d(4, 6, **options).double()
    ours = sv.nn.Conv3d(4, 6, **{"padding": 0, **options}).double()
    ours.load_state_dict(theirs.state_dict())
    x, volume = full(4)
    expected = theirs(volume)
    actual = ours(x).dense(0, expected.shape[2:])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{"kernel_size": 2, "stride": 2}, {**CONVS[5]}], ids=str)
def test_transposed_state_dicts_of_torch_load_and_give_the_same_output(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = nn.ConvTranspose3d(4, 6, **options).double()
    ours = sv.nn.ConvTranspose3d(4, 6, **options).double()
    ours.load_state_dict(theirs.state_dict())
    x, volume = full(4)
    expected = theirs(volume)
    torch.testing.assert_close(ours(x).dense(0, expected.shape[2:]), expected, rtol=1e-10, atol=1e-10)


def test_initialization_matches_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.Conv3d(8, 16, 3)
    torch.manual_seed(0)
    ours = sv.nn.Conv3d(8, 16, 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert theirs.bias is not None and ours.bias is not None  # noqa: PT018  (for the type checker)
    assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_may_have_another_dtype_than_features(kernel: int) -> None:
    conv, x = sv.nn.Conv3d(8, 4, kernel), ragged()
    y = conv(x.to(torch.float64))
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.feats.float(), conv(x).feats)


def test_encoder_and_decoder_share_one_map() -> None:
    x = ragged()
    down, up = sv.nn.Conv3d(8, 8, 2, stride=2), sv.nn.ConvTranspose3d(8, 8, 2, stride=2)
    y = down(x)
    before = x.grid.kernel_map(2, stride=2, target=y.grid)
    z = up(y, grid=x.grid)
    assert z.grid is x.grid
    assert x.grid.kernel_map(2, stride=2, target=y.grid) is before


def test_features_go_to_the_given_grid() -> None:
    x = ragged()
    target = x.grid.coarsen(2).dilate(1)
    pools = (sv.nn.MaxPool3d(2), sv.nn.SumPool3d(3, stride=2), sv.nn.AvgPool3d(2))
    for module in (sv.nn.Conv3d(8, 4, 3, stride=2), *pools):
        assert module(x, grid=target).grid is target
    assert sv.nn.Conv3d(8, 4, 3)(x, grid=x.grid.dilate(1)).grid.same_voxels(x.grid.dilate(1))


# Pools, upsampling and reshaping on dense volumes


@pytest.mark.parametrize("kernel", [2, 3, (2, 2, 1), (3, 2, 1)])
def test_pools_match_torch(kernel: Any) -> None:
    x, volume = full(3)
    for module, expected in (
        (sv.nn.MaxPool3d(kernel), F.max_pool3d(volume, kernel)),
        (sv.nn.AvgPool3d(kernel), F.avg_pool3d(volume, kernel)),
        (sv.nn.AvgPool3d(kernel, count="window"), F.avg_pool3d(volume, kernel)),
        (sv.nn.MaxPool3d(3, stride=2, padding=1), F.max_pool3d(volume, 3, 2, 1)),
        (sv.nn.MaxPool3d(3, stride=2, padding=0), F.max_pool3d(volume, 3, 2)),
        (sv.nn.MaxPool3d((3, 1, 1), stride=(2, 1, 1)), F.max_pool3d(volume, (3, 1, 1), (2, 1, 1), (1, 0, 0))),
        (sv.nn.MaxPool3d(2, dilation=2), F.max_pool3d(volume, 2, dilation=2)),
    ):
        torch.testing.assert_close(module(x).dense(0, expected.shape[2:]), expected)


def test_upsample_is_nearest() -> None:
    x, volume = full(3)
    expected = F.interpolate(volume, scale_factor=2, mode="nearest")
    assert torch.equal(sv.nn.Upsample(2)(x).dense(), expected)
    mask = x.grid.ijk[:, 0] > 2
    some = sv.nn.Upsample(2)(x, mask=mask)
    assert some.grid.same_voxels(x.grid.subdivide(2, mask))
    assert torch.equal(some.dense(0, 12)[:, :, 6:], expected[:, :, 6:])


def test_space_to_channel_and_back() -> None:
    x = ragged()
    deep = sv.nn.SpaceToChannel(2)(x)
    assert deep.channels == 64
    back = sv.nn.ChannelToSpace(2)(deep, grid=x.grid)
    assert torch.equal(back.feats, x.feats)
    y, volume = full(2)
    folded = F.pad(volume, (0, 0)).unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2)  # [B, C, X, Y, Z, i, j, k]
    expected = folded.permute(0, 5, 6, 7, 1, 2, 3, 4).flatten(1, 4)
    assert torch.equal(sv.nn.SpaceToChannel(2)(y).dense(), expected)
    with pytest.raises(ValueError, match="ChannelToSpace needs a multiple of 8 channels, got 9"):
        sv.nn.ChannelToSpace(2)(ragged(9))


@pytest.mark.parametrize("factor", [2, 3, (1, 2, 4)], ids=str)
def test_space_to_channel_and_back_on_other_grids(factor: Any) -> None:
    x = ragged()
    down, up = sv.nn.SpaceToChannel(factor), sv.nn.ChannelToSpace(factor)
    deep = down(x)
    target, wide = deep.grid.dilate(1), x.grid.dilate(4)  # with voxels that have no children, or no parent
    assert torch.equal(down(x, grid=target).feats, deep.to_grid(target).feats)
    assert torch.equal(up(deep, grid=wide).feats, x.to_grid(wide).feats)
    has_parent = deep.grid.contains(torch.cat([wide.coords[:, :1], wide.ijk // torch.tensor(down.factor)], 1))
    assert not has_parent.all()
    assert torch.equal(up(deep.map(torch.ones_like), grid=wide).feats, has_parent[:, None].float().expand(-1, 8))
    mask = deep.grid.ijk[:, 0] > 0
    some = up(deep, mask=mask)
    assert some.grid.same_voxels(deep.grid.subdivide(factor, mask))
    assert torch.equal(some.feats, x.to_grid(some.grid).feats)


# Norms


def test_norms_match_torch_item_by_item() -> None:
    torch.manual_seed(0)
    x = ragged(dtype=torch.float64)
    group, instance = sv.nn.GroupNorm(2, 8, eps=0.3).double(), sv.nn.InstanceNorm(8, eps=0.3)
    assert group.weight is not None
    assert group.bias is not None
    nn.init.normal_(group.weight)
    nn.init.normal_(group.bias)
    for part, g, i in zip(x.unbind(), group(x).unbind(), instance(x).unbind(), strict=True):
        rows = part.feats.t()[None]
        if rows.shape[2] > 1:
            torch.testing.assert_close(g.feats.t()[None], F.group_norm(rows, 2, group.weight, group.bias, 0.3))
            torch.testing.assert_close(i.feats.t()[None], F.instance_norm(rows, eps=0.3))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_norms_of_a_voxel_match_torch(name: str) -> None:
    ours, theirs, x = getattr(sv.nn, name)(8, eps=0.3), getattr(nn, name)(8, eps=0.3), ragged()
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x).feats, theirs(x.feats))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_matches_torch(training: bool) -> None:
    x = ragged()
    ours, theirs = sv.nn.BatchNorm(8).train(training), nn.BatchNorm1d(8).train(training)
    torch.testing.assert_close(ours(x).feats, theirs(x.feats))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize("count", [0, 1])
def test_batch_norm_of_too_few_voxels_uses_running_statistics(count: int) -> None:
    module = sv.nn.BatchNorm(3)
    assert module.running_mean is not None
    module.running_mean.add_(2)
    x = sv.SparseTensor(sv.Grid.full(0, 1) if count else sv.Grid.empty(), torch.full((count, 3), 4.0))
    torch.testing.assert_close(module(x).feats, torch.full((count, 3), 2.0), rtol=1e-4, atol=0)
    without = sv.nn.BatchNorm(3, track_running_stats=False)
    torch.testing.assert_close(without(x).feats, x.feats, rtol=1e-4, atol=0)
    assert module.running_mean.tolist() == [2.0] * 3


# Attention


@pytest.mark.parametrize(("window", "shift"), [(None, 0), (1, 0), (7, 0), (16, 8), (16, 5), (1000, 500)])
def test_attention_stays_in_its_window(window: int | None, shift: int) -> None:
    torch.manual_seed(0)
    x = ragged(dtype=torch.float64)
    module = sv.nn.Attention(8, 2, window=window, shift=shift).double()
    actual = module(x)
    for part, found in zip(x.unbind(), actual.unbind(), strict=True):
        count = len(part.feats)
        edges = sorted({0, count, *range((window or count) - shift, count, window or max(count, 1))})
        for first, last in itertools.pairwise(edges):
            q, k, v = module.qkv(part).feats[first:last].unflatten(1, (3, 2, 4)).unbind(1)
            weights = torch.einsum("qhc,khc->hqk", q, k).div(2).softmax(-1)
            mixed = torch.einsum("hqk,khc->qhc", weights, v).flatten(1)
            expected = F.linear(mixed, module.proj.weight, module.proj.bias)
            torch.testing.assert_close(found.feats[first:last], expected)


# Arguments


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: sv.nn.Conv3d(8, 4, 8), "kernel_size must be between 1 and 7, got 8"),
    (lambda: sv.nn.Conv3d(8, 4, 0), "kernel_size must be between 1 and 7, got 0"),
    (lambda: sv.nn.Conv3d(8, 4, 3, groups=3), "groups must divide in_channels and out_channels, got 3 for 8 and 4"),
    (lambda: sv.nn.Conv3d(0, 4, 3), "in_channels must be at least 1, got 0"),
    (lambda: sv.nn.Conv3d(3, 4, 3)(ragged()), "Conv3d expects 3 channels, got 8"),
    (lambda: sv.nn.GroupNorm(3, 8), "num_groups must divide num_channels = 8, got 3"),
    (lambda: sv.nn.AvgPool3d(2, count="all"), "count must be 'active' or 'window', got 'all'"),  # type: ignore[arg-type]
    (lambda: sv.nn.GlobalPool("median"), "reduce must be 'mean', 'max', 'sum' or 'min', got 'median'"),  # type: ignore[arg-type]
    (lambda: sv.nn.Attention(8, 3), "num_heads must divide channels = 8, got 3"),
    (lambda: sv.nn.Attention(8, 2, window=4, shift=4), "shift must be at least 0 and less than window = 4, got 4"),
    (lambda: sv.nn.Upsample(0), "factor must be between 1"),
    (lambda: sv.nn.SpaceToChannel(8), "factor must be between 1 and 7, got 8"),
    (lambda: sv.nn.LayerNorm(3)(ragged()), "LayerNorm expects 3 channels, got 8"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_arguments_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_tensor_in_place_of_a_sparse_tensor_is_named() -> None:
    with pytest.raises(TypeError, match=r"Conv3d takes a sparsevox.SparseTensor, got Tensor; .*nn.Sequential"):
        sv.nn.Conv3d(8, 4, 3)(torch.zeros(3, 8))


def test_defaults_may_be_spelled_as_triples() -> None:
    x = ragged()
    for kernel in (2, 3):
        plain = sv.nn.MaxPool3d(kernel)(x)
        spelled = sv.nn.MaxPool3d((kernel,) * 3, (kernel,) * 3, (0, 0, 0), (1, 1, 1))(x)
        assert spelled.grid is plain.grid
        assert torch.equal(spelled.feats, plain.feats)


def test_wrappers_of_torch_around_our_modules_get_the_sparse_tensor() -> None:
    x = ragged()
    wrapped = nn.utils.parametrizations.spectral_norm(sv.nn.Linear(8, 4))
    chain = sv.nn.Sequential(wrapped, nn.Sequential(sv.nn.Linear(4, 3)), nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    assert chain(x).shape == (x.shape[0], 2)


def test_modules_of_others_get_the_sparse_tensor() -> None:
    theirs, seen = type("Theirs", (nn.Identity,), {"__module__": "torchlike.nn"})(), []
    theirs.register_forward_pre_hook(lambda module, args: seen.append(type(args[0])))
    sv.nn.Sequential(theirs)(ragged())
    assert seen == [sv.SparseTensor]


def test_modules_print_themselves() -> None:
    assert repr(sv.nn.Conv3d(8, 4, 3, stride=2, bias=False)) == (
        "Conv3d(8, 4, kernel_size=3, stride=2, dilation=1, padding=1, bias=False)"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [
    lambda: sv.nn.Linear(8, 4),
    lambda: sv.nn.Conv3d(8, 4, 1),
    lambda: sv.nn.Conv3d(8, 4, 3),
    lambda: sv.nn.LayerNorm(8),
    lambda: sv.nn.RMSNorm(8),
    lambda: sv.nn.GroupNorm(2, 8),
    lambda: sv.nn.Attention(8, 2),
])  # fmt: skip
def test_features_decide_the_dtype(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    module, x = make(), ragged(dtype=dtype)
    result = module(x)
    assert result.dtype == dtype
    expected = module.to(dtype)(x)
    torch.testing.assert_close(result.feats, expected.feats, rtol=2e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-2)


def test_batch_norm_of_float64_needs_parameters_of_float64() -> None:
    with pytest.raises(ValueError, match="parameters of BatchNorm must be float64"):
        sv.nn.BatchNorm(8)(ragged(dtype=torch.float64))
    assert sv.nn.BatchNorm(8).double()(ragged(dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("module", [sv.nn.Conv3d(8, 4, 3), sv.nn.ConvTranspose3d(8, 4, 2, stride=2), sv.nn.MaxPool3d(2),
                                    sv.nn.Upsample(2), sv.nn.SpaceToChannel(2), sv.nn.ChannelToSpace(2)])  # fmt: skip
def test_a_tensor_in_place_of_a_grid_is_named(module: nn.Module) -> None:
    x = ragged()
    message = f"grid of {type(module).__name__} must be a sparsevox.Grid, got a SparseTensor; pass its .grid"
    with pytest.raises(TypeError, match=message):
        module(x, grid=x)
