"""`torch.compile` with inductor, its default backend, on the CPU: one graph, results and gradients as in eager mode."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config

import sparsevox as sv
from sparsevox.testing import as_coords, random_batch


class UNet(torch.nn.Module):
    """Two resolutions, as in the README."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = sv.nn.Sequential(sv.nn.Conv3d(4, 8, 3), sv.nn.BatchNorm(8), torch.nn.ReLU())
        self.down = sv.nn.Sequential(sv.nn.Conv3d(8, 8, 2, stride=2), torch.nn.ReLU())
        self.up = sv.nn.ConvTranspose3d(8, 8, 2, stride=2)
        self.head = sv.nn.Linear(16, 3)

    def forward(self, x: sv.SparseTensor) -> sv.SparseTensor:
        x = self.fine(x)
        return self.head(sv.cat([x, self.up(self.down(x), grid=x.grid)]))


def tensor(seed: int) -> sv.SparseTensor:
    data = random_batch(seed, 2, count=100 * seed, kinds=("clustered", "solid"))
    grid = sv.Grid.from_coords(as_coords(data.voxels), batch_size=2)
    return sv.SparseTensor(grid, torch.randn(grid.num_voxels, 4, generator=torch.Generator().manual_seed(seed)))


def results(function: Callable[..., sv.SparseTensor], net: UNet, x: sv.SparseTensor) -> list[Tensor]:
    """The output, and the gradients of the features and the parameters."""
    net.zero_grad()
    x = sv.SparseTensor(sv.Grid(x.grid.bricks), x.feats.double().requires_grad_())  # with no cached kernel map
    y = function(x).feats
    y.square().sum().backward()
    grads = [value.grad for value in (x.feats, *net.parameters()) if value.grad is not None]
    assert len(grads) == 1 + len(list(net.parameters()))
    return [y.detach(), *(grad.clone() for grad in grads)]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # from inductor
def test_a_unet_compiles_with_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "compile_threads", 1)  # no processes
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = UNet().double()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=True)
    for seed in (3, 1, 5):
        for ours, expected in zip(results(compiled, net, tensor(seed)), results(net, net, tensor(seed)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert counter.frame_count <= 2  # Dynamo traces again once it knows which numbers are constants
