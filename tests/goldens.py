"""Readers of tests/golden, where a README says what each file holds."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid

FOLDER = Path(__file__).parent / "golden"


class GoldenFile:
    """The arrays of one file, as tensors; `meta` is what the file says about itself."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(FOLDER / f"{name}.npz", allow_pickle=False)
        self.names: list[str] = self.arrays.files
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta_json"]))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def grid(self, prefix: str) -> Grid:
        """The grid of `prefix/coords`, with the voxel size and origin next to it."""
        size, origin = (self.arrays[f"{prefix}/{name}"].tolist() for name in ("voxel_size", "origin"))
        return Grid.from_coords(self[f"{prefix}/coords"], voxel_size=size, origin=origin)

    def aligned(self, grid: Grid, coords: str, values: str) -> Tensor:
        """The array `values`, whose rows belong to the voxels `coords`, in the row order of a grid of these voxels."""
        rows = grid.index(self[coords])
        assert sorted(rows.tolist()) == list(range(grid.num_voxels))
        return torch.empty_like(self[values]).index_copy_(0, rows, self[values])


def close(ours: Tensor | float, theirs: Tensor) -> None:
    """The largest error is at most 1e-4 of the largest expected value, and at most 1e-4 where that is below one."""
    a, b = torch.as_tensor(ours).detach().double(), theirs.double()
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max()))


@cache
def official_networks(kind: str) -> dict[str, dict[str, Any]]:
    """The official networks of a kind, "vae" or "diffusion": each with `hparams` and `state_dict` (name: shape)."""
    entries: dict[str, dict[str, Any]] = json.loads(gzip.decompress((FOLDER / "manifest.json.gz").read_bytes()))[
        "configs"
    ]
    bases = {entry["yaml"]: entry["hparams"] for entry in entries.values() if "hparams" in entry}
    return {
        name: entry
        | {
            "hparams": merged(bases[entry["yaml"]], entry.get("cli_override", {})),
            "state_dict": entries[entry.get("state_dict_same_as", name)]["state_dict"],
        }
        for name, entry in entries.items()
        if entry["kind"] == kind
    }


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them changed, as the original code merges its YAML files."""
    nested = {k: merged(values[k], v) for k, v in changes.items() if isinstance(v, dict) and k in values}
    return values | changes | nested
