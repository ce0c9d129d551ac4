"""Convolution and its transpose against `torch.nn.functional` on dense volumes, and the definition."""

import itertools
import random
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsevox import Grid, ops
from sparsevox.conv_geometry import Geometry
from sparsevox.testing import Voxel, VoxelSet, as_coords, row_order, voxel_sets
from tests.definitions import conv as definition
from tests.goldens import GoldenFile

Axes = tuple[int, int, int]

SHAPE = (19, 18, 17)
SMALL = (9, 8, 7)
LOWER = (-12, -6, -18)  # of the volumes; divisible by every stride
KERNELS: list[Axes] = [(1, 1, 1), (2, 2, 2), (3, 3, 3), (5, 5, 5), (1, 3, 3), (3, 1, 1)]
STRIDES: list[Axes] = [(1, 1, 1), (2, 2, 2), (3, 3, 3), (2, 1, 1)]
DILATIONS: list[Axes] = [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
CHANNELS = {"one group": (2, 3, 1), "two groups": (4, 2, 2), "depthwise": (3, 6, 3)}
PADDINGS: list[Axes | None] = [None, (0, 0, 0), None, (1, 1, 1), None, (0, 1, 3)]
TARGETS = ("default", "cropped", "moved", "dilated", "itself")
TOLERANCE = 1e-10  # of the largest number


class Layer(NamedTuple):
    """A geometry as torch takes it, channels and groups, the items of the batch that have voxels, and a target."""

    kernel: Axes
    stride: Axes
    dilation: Axes
    padding: Axes | None
    channels: str
    items: tuple[bool, ...]
    target: str

    def __str__(self) -> str:
        return "-".join(str(part).replace(" ", "") for part in self)

    @property
    def geometry(self) -> Geometry:
        default = [(k - 1) // 2 * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        x, y, z = default if self.padding is None else self.padding
        return Geometry(self.kernel, self.stride, self.dilation, (x, y, z))


def layers() -> list[Layer]:
    """Every kernel with every stride and dilation, shuffled; the rest takes turns."""
    channels = itertools.cycle(CHANNELS)
    items = itertools.cycle([(True,), (False, True), (True, False, True), (True, True, False), (True, True)])
    paddings, targets = itertools.cycle([*PADDINGS, None]), itertools.cycle([*TARGETS, "default"])
    geometries = list(itertools.product(KERNELS, STRIDES, DILATIONS))
    random.Random(0).shuffle(geometries)
    return [Layer(*g, next(paddings), next(channels), next(items), next(targets)) for g in geometries]


def some_voxels(items: tuple[bool, ...], lower: Axes, shape: Axes, density: float = 0.05) -> list[Voxel]:
    """Some voxels of the volume of each item that has any, in the order of rows."""
    rng = random.Random(f"{items} {shape}")
    box = [range(low, low + size) for low, size in zip(lower, shape, strict=True)]
    filled = [b for b, some in enumerate(items) if some]
    return row_order((b, *ijk) for b in filled for ijk in itertools.product(*box) if rng.random() < density)


def parameters(layer: Layer, transposed: bool) -> tuple[Tensor, Tensor, int]:
    """Weight, bias and groups, in float64."""
    inputs, outputs, groups = CHANNELS[layer.channels]
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    weight = torch.randn(*shape, *layer.kernel, dtype=torch.float64, requires_grad=True)
    return weight, torch.randn(outputs, dtype=torch.float64, requires_grad=True), groups


def volume(feats: Tensor, coords: Tensor, lower: Axes, shape: Axes, batch_size: int) -> Tensor:
    """Rows as a dense volume [B, C, X, Y, Z] that begins at `lower`, 0 elsewhere."""
    b, i, j, k = (coords - torch.tensor([0, *lower])).unbind(1)
    dense = torch.zeros(batch_size, *shape, feats.shape[1], dtype=feats.dtype)
    return dense.index_put((b, i, j, k), feats).movedim(4, 1)


def pick(dense: Tensor, coords: Tensor, lower: Axes) -> Tensor:
    """Rows of a dense volume, 0 outside of it."""
    ijk = coords[:, 1:] - torch.tensor(lower)
    size = torch.tensor(dense.shape[2:])
    inside = ((ijk >= 0) & (ijk < size)).all(1)
    i, j, k = ijk.clamp(min=0).minimum(size - 1).unbind(1)
    return dense.movedim(1, 4)[coords[:, 0], i, j, k] * inside[:, None]


def positive(dense: Tensor, lower: Axes) -> set[Voxel]:
    """Coordinates where a volume [B, 1, X, Y, Z] of counts is positive."""
    return {(b, *map(sum, zip(ijk, lower, strict=True))) for b, _, *ijk in (dense > 0.5).nonzero().tolist()}


def dense_conv(layer: Layer, x: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Axes]:
    """`F.conv3d` of a volume that begins at LOWER, padded until every voxel is reached, and where it begins."""
    axes = list(zip(*layer.geometry, LOWER, strict=True))
    more = [max(0, -(((k - 1) * d - p) // -s)) for k, s, d, p, _ in axes]  # coarse voxels
    padding = [p + s * e for (_, s, _, p, _), e in zip(axes, more, strict=True)]
    i, j, k = (low // s - e for (_, s, _, _, low), e in zip(axes, more, strict=True))
    return F.conv3d(x, weight, None, layer.stride, padding, layer.dilation, groups), (i, j, k)


def dense_conv_transpose(layer: Layer, x: Tensor, lower: Axes, weight: Tensor, groups: int) -> tuple[Tensor, Axes]:
    """`F.conv_transpose3d` of a volume that begins at `lower`, without padding, and where it begins."""
    out = F.conv_transpose3d(x, weight, None, layer.stride, 0, 0, groups, layer.dilation)
    i, j, k = (low * s - p for low, s, p in zip(lower, layer.stride, layer.geometry.padding, strict=True))
    return out, (i, j, k)


def check_equal(actual: Tensor | None, expected: Tensor | None) -> None:
    assert actual is not None
    assert expected is not None
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.detach().abs().amax())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * scale)


def check_same(actual: Tensor, expected: Tensor, *leaves: tuple[Tensor, Tensor]) -> None:
    """Both results, and their gradients by pairs of leaves."""
    check_equal(actual, expected)
    probe = torch.randn_like(expected)
    mine = torch.autograd.grad(actual, [a for a, _ in leaves], probe)
    theirs = torch.autograd.grad(expected, [b for _, b in leaves], probe)
    for a, b in zip(mine, theirs, strict=True):
        check_equal(a, b)


def twin(leaf: Tensor) -> Tensor:
    return leaf.detach().clone().requires_grad_()


def as_set(grid: Grid) -> set[Voxel]:
    return {tuple(v) for v in grid.coords.tolist()}


def coarse_grid(fine: Grid, layer: Layer) -> Grid | None:
    """The target of a layer, None for the default."""
    if layer.target == "default":
        return None
    if layer.target == "itself":
        return fine if layer.stride == (1, 1, 1) else fine.coarsen(layer.stride)
    reached = fine.strided(layer.kernel, layer.stride, dilation=layer.dilation, padding=layer.padding)
    if layer.target == "cropped":
        return reached.crop((-3, -2, -9), (2, 9, -1))
    if layer.target == "moved":
        return reached.dilate(lower=(2, -1, 0), upper=(2, -1, 0))
    return reached.dilate(1).crop(-14, 3)


@pytest.mark.parametrize("layer", layers(), ids=str)
def test_conv_equals_torch(layer: Layer) -> None:
    torch.manual_seed(0)
    voxels = some_voxels(layer.items, LOWER, SHAPE)
    weight, bias, groups = parameters(layer, transposed=False)
    coords, size = as_coords(voxels), len(layer.items)
    fine = Grid.from_coords(coords, batch_size=size, voxel_size=0.5)
    feats = torch.randn(len(voxels), CHANNELS[layer.channels][0], dtype=torch.float64, requires_grad=True)

    k, s, d, p = layer.geometry
    ones = torch.ones(len(voxels), 1)
    counts, lower = dense_conv(layer, volume(ones, coords, LOWER, SHAPE, size), torch.ones(1, 1, *k), 1)
    assert as_set(fine.strided(k, s, dilation=d, padding=layer.padding)) == positive(counts, lower)

    target = coarse_grid(fine, layer)
    kernel_map = fine.kernel_map(k, stride=s, dilation=d, padding=layer.padding, target=target)
    if target is None:
        target = fine if s == (1, 1, 1) else fine.strided(k, s, dilation=d, padding=p)
    out = ops.conv3d(feats, weight, bias, kernel_map, groups=groups)

    x, w, b = map(twin, (feats, weight, bias))
    dense, lower = dense_conv(layer, volume(x, coords, LOWER, SHAPE, size), w, groups)
    check_same(out, pick(dense, target.coords.long(), lower) + b, (feats, x), (weight, w), (bias, b))


@pytest.mark.parametrize("layer", layers(), ids=str)
def test_conv_transpose_equals_torch(layer: Layer) -> None:
    torch.manual_seed(0)
    voxels = some_voxels(layer.items, LOWER, SMALL)
    weight, bias, groups = parameters(layer, transposed=True)
    coords, size = as_coords(voxels), len(layer.items)
    coarse = Grid.from_coords(coords, batch_size=size, voxel_size=3.0)
    feats = torch.randn(len(voxels), CHANNELS[layer.channels][0], dtype=torch.float64, requires_grad=True)

    k, s, d, _ = layer.geometry
    ones = volume(torch.ones(len(voxels), 1), coords, LOWER, SMALL, size)
    counts, lower = dense_conv_transpose(layer, ones, LOWER, torch.ones(1, 1, *k), 1)
    fine = coarse.generative(k, s, dilation=d, padding=layer.padding)
    assert as_set(fine) == positive(counts, lower)
    if layer.target == "cropped":
        fine = fine.crop(-20, (11, 12, -2))
    elif layer.target in ("moved", "dilated"):
        fine = fine.dilate(lower=(-1, 0, 1), upper=(0, 0, 1))
    elif layer.target == "itself" and s == (1, 1, 1):
        fine = coarse
    kernel_map = fine.kernel_map(k, stride=s, dilation=d, padding=layer.padding, target=coarse)
    out = ops.conv_transpose3d(feats, weight, bias, kernel_map, groups=groups)

    x, w, b = map(twin, (feats, weight, bias))
    dense, lower = dense_conv_transpose(layer, volume(x, coords, LOWER, SMALL, size), LOWER, w, groups)
    check_same(out, pick(dense, fine.coords.long(), lower) + b, (feats, x), (weight, w), (bias, b))


@given(voxel_sets(max_voxels=20, limits=False), st.sampled_from(layers()))
def test_conv_equals_the_definition(data: VoxelSet, layer: Layer) -> None:
    torch.manual_seed(0)
    rows, geometry = row_order(data.voxels), layer.geometry
    grid = Grid.from_coords(as_coords(rows), batch_size=data.batch_size)
    options = {"stride": geometry.stride, "dilation": geometry.dilation, "padding": geometry.padding}
    for transposed in (False, True):
        weight, _, groups = parameters(layer, transposed)
        feats = torch.randn(len(rows), CHANNELS[layer.channels][0], dtype=torch.float64)
        if transposed:
            fine = grid.generative(geometry.kernel_size, **options)
            kernel_map = fine.kernel_map(geometry.kernel_size, **options, target=grid)
            out = ops.conv_transpose3d(feats, weight, None, kernel_map, groups=groups)
            expected = definition.conv_transpose3d(feats, weight, row_order(as_set(fine)), rows, geometry, groups)
        else:
            coarse = grid.strided(geometry.kernel_size, **options)
            kernel_map = grid.kernel_map(geometry.kernel_size, **options, target=coarse)
            out = ops.conv3d(feats, weight, None, kernel_map, groups=groups)
            expected = definition.conv3d(feats, weight, rows, row_order(as_set(coarse)), geometry, groups)
        check_equal(out, expected)


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("channels", [(1, 133), (133, 1), (3, 65), (65, 33), (33, 5), (5, 3)], ids=str)
def test_any_number_of_channels(channels: tuple[int, int], kernel: int) -> None:
    torch.manual_seed(1)
    inputs, outputs = channels
    voxels = some_voxels((True, False, True), (-2, 0, -5), (6, 5, 4), 0.2)
    coords = as_coords(voxels)
    grid = Grid.from_coords(coords, batch_size=3)
    feats = torch.randn(len(voxels), inputs, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs, inputs, kernel, kernel, kernel, dtype=torch.float64, requires_grad=True)
    out = ops.conv3d(feats, weight, None, grid.kernel_map(kernel))
    back = ops.conv_transpose3d(feats, weight.transpose(0, 1), None, grid.kernel_map(kernel))

    x, w = twin(feats), twin(weight)
    dense = F.conv3d(volume(x, coords, (-2, 0, -5), (6, 5, 4), 3), w, padding=kernel // 2)
    check_same(out, pick(dense, coords, (-2, 0, -5)), (feats, x), (weight, w))
    dense = volume(x, coords, (-2, 0, -5), (6, 5, 4), 3)
    dense = F.conv_transpose3d(dense, w.transpose(0, 1), padding=kernel // 2)
    check_same(back, pick(dense, coords, (-2, 0, -5)), (feats, x), (weight, w))


@pytest.mark.parametrize("channels", [(0, 0), (0, 2), (2, 0)], ids=str)
def test_groups_without_channels(channels: tuple[int, int]) -> None:
    inputs, outputs = channels
    grid = Grid.full((0, 0, 0), (3, 3, 3))
    feats = torch.randn(27, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs // 2, 3, 3, 3, requires_grad=True)
    out = ops.conv3d(feats, weight, None, grid.kernel_map(3), groups=2)
    assert out.shape == (27, outputs)
    assert not out.any()
    gradients = torch.autograd.grad(out.sum(), (feats, weight))
    assert [g.shape for g in gradients] == [feats.shape, weight.shape]
    assert not any(g.any() for g in gradients)


SECOND: list[tuple[Axes, Axes, Axes]] = [
    ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((3, 3, 3), (2, 2, 2), (0, 1, 1)),
    ((3, 1, 1), (2, 1, 1), (0, 0, 0)),
]


def test_an_encoder_on_a_fixed_shape_equals_torch() -> None:
    """The geometries of SECOND, whose coarse grids are cropped to drop voxels beyond the dense shape."""
    torch.manual_seed(2)
    shape, lower = (41, 22, 16), (0, 0, 0)
    coords = as_coords(some_voxels((True, True), lower, shape, 0.01))
    grid = Grid.from_coords(coords, batch_size=2)
    feats = torch.randn(grid.num_voxels, 2, dtype=torch.float64)
    dense, counts = volume(feats, coords, lower, shape, 2), volume(torch.ones(len(coords), 1), coords, lower, shape, 2)
    lost = 0
    for kernel, stride, padding in SECOND:
        weight = torch.randn(2, 2, *kernel, dtype=torch.float64)
        dense = F.conv3d(dense, weight, None, stride, padding).relu()
        counts = (F.conv3d(counts, torch.ones(1, 1, *kernel), None, stride, padding) > 0.5).float()
        reached = grid.strided(kernel, stride, padding=padding)
        coarse = reached.crop(0, tuple(dense.shape[2:]))
        assert as_set(coarse) == positive(counts, lower)
        kernel_map = grid.kernel_map(kernel, stride=stride, padding=padding, target=coarse)
        feats, grid = ops.conv3d(feats, weight, None, kernel_map).relu(), coarse
        i, j, k = dense.shape[2:]
        check_equal(volume(feats, grid.coords.long(), lower, (i, j, k), 2), dense)
        lost += reached.num_voxels - coarse.num_voxels
    assert lost > 0
    assert dense.any()


def line(*positions: int, voxel_size: float = 1.0) -> Grid:
    return Grid.from_coords(as_coords((0, x, 0, 0) for x in positions), voxel_size=voxel_size)


def test_a_convolution_by_hand() -> None:
    """MinkowskiEngine's one: out[0] = x[0] W[0] + x[1] W[1], out[1] = x[2] W[0]."""
    grid = line(0, 1, 2)
    feats = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    taps = torch.tensor([[[1.0, 2.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]], requires_grad=True)  # [tap, in, out]
    weight = taps.permute(2, 1, 0)[..., None, None]
    kernel_map = grid.kernel_map((2, 1, 1), stride=(2, 1, 1))
    out = ops.conv3d(feats, weight, torch.tensor([0.0, 10.0]), kernel_map)
    assert out.tolist() == [[2, 12], [3, 13]]
    out.sum().backward()
    assert feats.grad is not None
    assert taps.grad is not None
    assert feats.grad.tolist() == [[3, 3], [1, 1], [3, 3]]
    assert taps.grad.tolist() == [[[1, 1], [2, 2]], [[1, 1], [0, 0]]]
    back = ops.conv_transpose3d(out, weight, None, kernel_map)  # x[0] = y[0] W[0]^T, x[1] = y[0] W[1]^T, ...
    assert back.tolist() == [[26, 16], [12, 2], [29, 19]]


def test_two_points_that_overlap_in_a_generative_transpose() -> None:
    """Points at 0 and 1 reach -1, 0, 1 and 1, 2, 3."""
    coarse = line(0, 1, voxel_size=2.0)
    fine = coarse.generative((3, 1, 1), (2, 1, 1))
    assert sorted(fine.ijk.tolist()) == [[x, 0, 0] for x in (-1, 0, 1, 2, 3)]
    feats = torch.tensor([[1.0], [10.0]])
    weight = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1)
    kernel_map = fine.kernel_map((3, 1, 1), stride=(2, 1, 1), target=coarse)
    out = ops.conv_transpose3d(feats, weight, torch.tensor([100.0]), kernel_map)
    by_place = dict(zip(fine.ijk[:, 0].tolist(), out[:, 0].tolist(), strict=True))
    assert by_place == {-1: 101, 0: 102, 1: 113, 2: 120, 3: 130}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        (Grid.empty(0), Grid.empty(0)),
        (Grid.empty(3), Grid.empty(3)),
        (Grid.empty(1), Grid.full(0, 2)),
        (Grid.full(0, 2), Grid.empty(1)),
        (Grid.full(0, 2), Grid.full(100, 101)),
    ],
    ids=str,
)
def test_nothing_to_sum_is_the_bias(fine: Grid, coarse: Grid, transposed: bool) -> None:
    kernel_map = fine.kernel_map(3, target=coarse)
    source, target = (coarse, fine) if transposed else (fine, coarse)
    feats = torch.randn(source.num_voxels, 2, requires_grad=True)
    weight, bias = torch.randn(2, 2, 3, 3, 3, requires_grad=True), torch.tensor([3.0, 4.0], requires_grad=True)
    out = (ops.conv_transpose3d if transposed else ops.conv3d)(feats, weight, bias, kernel_map)
    assert out.tolist() == [[3, 4]] * target.num_voxels
    out.sum().backward()
    assert feats.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    assert feats.grad.tolist() == [[0, 0]] * source.num_voxels
    assert not weight.grad.any()
    assert bias.grad.tolist() == [target.num_voxels] * 2


def test_a_stride_that_drops_every_voxel() -> None:
    grid = Grid.from_coords(2 * torch.randint(-9, 9, (50, 3)) + 1)
    kernel_map = grid.kernel_map(1, stride=2)
    feats, weight = torch.randn(grid.num_voxels, 3, requires_grad=True), torch.randn(4, 3, 1, 1, 1, requires_grad=True)
    out = ops.conv3d(feats, weight, torch.randn(4), kernel_map)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert feats.grad is not None
    assert weight.grad is not None
    assert not feats.grad.any()
    assert not weight.grad.any()


def test_fvdb() -> None:
    file = GoldenFile("fvdb_ops")
    grid = file.grid("in")
    feats = file.aligned(grid, "in/coords", "in/feat")
    # fVDB had the axes of a kernel in the order k, j, i, and none where there is one tap.
    cube, point = (
        file["conv3/weight_official_layout"].permute(0, 1, 4, 3, 2),
        file["conv1/weight"][:, :, None, None, None],
    )
    for name, weight in (("conv3", cube), ("conv1", point)):
        out = ops.conv3d(feats, weight, file[f"{name}/bias"], grid.kernel_map(weight.shape[2:]))
        torch.testing.assert_close(out, file.aligned(grid, "in/coords", f"{name}/out"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [(0, 0, 0), (-1, -1, -1), (131071, -131072, 131071)])
def test_one_voxel_meets_itself_only(place: Axes) -> None:
    grid, feats, weight = Grid.from_coords(torch.tensor([place])), torch.randn(1, 4), torch.randn(5, 4, 3, 3, 3)
    out = ops.conv3d(feats, weight, None, grid.kernel_map(3))
    torch.testing.assert_close(out, feats @ weight[:, :, 1, 1, 1].T)
    back = ops.conv_transpose3d(out, weight, None, grid.kernel_map(3))
    torch.testing.assert_close(back, out @ weight[:, :, 1, 1, 1])
