"""One process of tests/test_distributed.py: `python tests/ranks.py RANK FOLDER COUNT...`.

Trains one step of a small network on the batch items of its rank and leaves gradients and statistics in the folder.
There are as many processes as counts: of points, from which the voxels of the batch item of each rank are made.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sparsevox as sv

CHANNELS = 4


def network() -> nn.Module:
    """Every kind of module with parameters, batch norm over all ranks."""
    torch.manual_seed(0)
    return sv.nn.Sequential(
        sv.nn.Conv3d(3, CHANNELS, 3),
        sv.nn.SyncBatchNorm(CHANNELS),
        nn.ReLU(),
        sv.nn.Conv3d(CHANNELS, CHANNELS, 3, stride=2),
        sv.nn.GroupNorm(2, CHANNELS),
        sv.nn.ConvTranspose3d(CHANNELS, CHANNELS, 2, stride=2),
        sv.nn.Linear(CHANNELS, 1),
    ).double()


def item(rank: int, count: int) -> sv.SparseTensor:
    """The batch item of a rank."""
    generator = torch.Generator().manual_seed(rank)
    grid = sv.Grid.from_coords(torch.randint(-4, 4, (count, 3), generator=generator))
    return sv.SparseTensor(grid, torch.randn(grid.num_voxels, 3, dtype=torch.float64, generator=generator))


def step(model: nn.Module, x: sv.SparseTensor) -> dict[str, torch.Tensor]:
    """Gradients of a sum over voxels, which does not depend on how they are shared out, and running statistics."""
    model(x).feats.square().sum().backward()
    grads = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return grads | {name.removeprefix("module."): b.clone() for name, b in model.named_buffers()}


def main() -> None:
    """Join the others, take one step, write it down."""
    rank, folder, counts = int(sys.argv[1]), Path(sys.argv[2]), [int(count) for count in sys.argv[3:]]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(counts))
    torch.save(step(DistributedDataParallel(network()), item(rank, counts[rank])), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # torch leaves threads behind, and now and then a process aborts when it ends with them


if __name__ == "__main__":
    main()
