"""Networks under `torch.compile`: one graph, few of them for grids of many sizes, the same results and gradients."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import sparsevox as sv
from sparsevox.testing import as_coords, random_batch


def tensor(seed: int, channels: int = 4) -> sv.SparseTensor:
    data = random_batch(seed, 3, count=20 * seed + 20, kinds=("clustered", "solid"))
    grid = sv.Grid.from_coords(as_coords(data.voxels), batch_size=3)
    generator = torch.Generator().manual_seed(seed)
    return sv.SparseTensor(grid, torch.randn(grid.num_voxels, channels, generator=generator))


class UNet(nn.Module):
    """Every kind of module on two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = sv.nn.Sequential(sv.nn.Conv3d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU())
        self.level = sv.nn.Sequential(sv.nn.GroupNorm(2, 8), nn.SiLU(), sv.nn.Conv3d(8, 8, 3))
        self.down = sv.nn.Conv3d(8, 16, 2, stride=2)
        self.inner = sv.nn.Sequential(sv.nn.InstanceNorm(16), sv.nn.Conv3d(16, 16, 3), sv.nn.LayerNorm(16))
        self.attention = sv.nn.Attention(16, 2, window=8)
        self.pool, self.upsample = sv.nn.MaxPool3d(2), sv.nn.Upsample(2)
        self.deep = sv.nn.Sequential(sv.nn.RMSNorm(16), sv.nn.Linear(16, 16), sv.nn.BatchNorm(16))
        self.up = sv.nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.head = sv.nn.Linear(16, 3)

    def forward(self, x: sv.SparseTensor) -> tuple[sv.SparseTensor, torch.Tensor]:
        x = self.stem(x)
        x = x + self.level(x)
        y = self.attention(self.inner(self.down(x)))
        z = self.deep(self.pool(y))  # coarsens inside the graph
        y = y + self.upsample(z, grid=y.grid)
        x = sv.cat([x, self.up(y, grid=x.grid)])
        return self.head(x), sv.nn.GlobalPool("mean")(x)


def test_a_unet_is_one_graph_for_all_sizes() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    eager = UNet().double()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(eager, fullgraph=True, backend=counter)
    for seed in range(10):
        x = tensor(seed).to(torch.float64)
        results = []
        for model in (compiled, eager):
            eager.zero_grad()
            inputs = sv.SparseTensor(sv.Grid(x.grid.bricks), x.feats.clone().requires_grad_())
            y, pooled = model(inputs)
            (y.feats.square().sum() + pooled.sum()).backward()
            grads = [p.grad.clone() for p in eager.parameters() if p.grad is not None]
            results.append([y.feats, pooled, inputs.feats.grad, *grads])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = UNet().eval()
    x = tensor(4)
    grads = []
    for remember in (True, False):
        model.zero_grad()
        feats = x.feats.clone().requires_grad_()

        def run(rows: torch.Tensor) -> torch.Tensor:
            return model(x.replace(rows))[0].feats

        y = run(feats) if remember else checkpoint(run, feats, use_reentrant=reentrant)
        y.square().sum().backward()
        grads.append([feats.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_autocast_runs_convolutions_in_half() -> None:
    model, x = UNet(), tensor(3)
    seen = []
    model.down.register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = model(x)
        y.feats.float().sum().backward()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model.eval()(x)
    assert seen == [torch.bfloat16, torch.bfloat16]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"momentum": 0.3, "eps": 0.5, "affine": False}], ids=str)
def test_batch_norm_in_a_graph_is_torchs(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    ours, theirs = sv.nn.BatchNorm(4, **options).double(), nn.BatchNorm1d(4, **options).double()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for seed in range(3):
        x = tensor(seed).to(torch.float64)
        torch.testing.assert_close(compiled(x).feats, theirs(x.feats))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    # One voxel has no variance: the running statistics serve, and stay.
    before = [value.clone() for value in ours.state_dict().values()]
    one = sv.SparseTensor(sv.Grid.full(0, 1), torch.full((1, 4), 3.0, dtype=torch.float64))
    torch.testing.assert_close(compiled(one).feats, theirs.eval()(one.feats))
    assert all(map(torch.equal, before, ours.state_dict().values()))
