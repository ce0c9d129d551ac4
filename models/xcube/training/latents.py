"""What a denoiser is trained on: numbered shapes, their latents, and what is known of them as a whole.

M latent voxels, B grids.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sparsevox as sv
from sparsevox import Voxels
from sparsevox.data import VoxelBudgetSampler
from xcube.data.loading import ShapeFolder
from xcube.networks.conditions import NO_CLASS, Text
from xcube.networks.text_encoder import TextEncoder
from xcube.training.config import TrainConfig
from xcube.training.status import shown

NUMBER = "number"  # the attribute that says of every voxel which shape of the data set it belongs to


class Whole:
    """Conditions of whole shapes of a data set, by their names.

    Args:
        names: In the order of the data set.
        categories: How the names of the shapes of each category begin.
        captions: Texts by name; other shapes have the empty one.
        encoder: What embeds them.
    """

    def __init__(
        self,
        names: Sequence[str],
        categories: Sequence[str] = (),
        captions: Mapping[str, str] | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        self.category: Tensor | None = None
        self.text: Text | None = None
        self.empty: Text | None = None
        if categories:
            self.category = torch.tensor([category_of(name, categories) for name in names])
        if captions is not None and encoder is not None:
            texts = sorted({captions.get(name, "") for name in names})
            self.place = torch.tensor([texts.index(captions.get(name, "")) for name in names])
            self.text = Text.stack([encoder([text]) for text in texts])
            self.empty = encoder([""])

    def of(self, numbers: Tensor) -> dict[str, Any]:
        """`category` and `text`, as far as there are, of the shapes of these numbers, [B]."""
        found: dict[str, Any] = {}
        if self.category is not None:
            found["category"] = self.category.to(numbers.device)[numbers]
        if self.text is not None:
            found["text"] = self.text.to(numbers.device)[self.place.to(numbers.device)[numbers]]
        return found


def category_of(name: str, categories: Sequence[str]) -> int:
    """The first category that a name begins with, -1 if there is none."""
    return next((number for number, start in enumerate(categories) if name.startswith(start)), NO_CLASS)


class Prepared:
    """The shapes of a data set as training wants them: with their number, and encoded once and for all if asked to.

    sizes: Voxels of each: those of the latent grid, if they are encoded.

    Args:
        shapes: The data set.
        most: How many of them, at most.
    """

    def __init__(self, shapes: ShapeFolder[Voxels], most: int | None = None) -> None:
        self.shapes, self.sizes = shapes, shapes.sizes[:most]
        self._encoded: dict[int, Voxels] = {}

    def encode(self, function: Callable[[Voxels], Voxels], config: TrainConfig, *, quiet: bool) -> None:
        """Replace shapes by what a function makes of batches of them, in memory."""
        sampler = VoxelBudgetSampler(
            self.sizes, config.voxels, max_items=config.batch_size, shuffle=False, rank=0, replicas=1
        )
        for items in shown(list(sampler), "encode", quiet):
            made = function(sv.collate([self[item] for item in items])).to("cpu")
            self._encoded |= dict(zip(items, made.unbind(), strict=True))
        self.sizes = [self._encoded[item].num_voxels for item in range(len(self))]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, item: int) -> Voxels:
        if item in self._encoded:
            return self._encoded[item]
        voxels = self.shapes[item]
        return voxels.with_attributes(**{NUMBER: torch.full((voxels.num_voxels,), item, dtype=torch.int32)})

    def __repr__(self) -> str:
        return f"Prepared({self.shapes!r})"


def numbered(voxels: Voxels, grid: sv.Grid) -> dict[str, Tensor]:
    """The number of its shape for every voxel of another grid, if voxels have one."""
    if NUMBER not in voxels.attributes:
        return {}
    return {NUMBER: first_of(voxels, NUMBER)[grid.batch.long()]}


def first_of(voxels: Voxels, name: str) -> Tensor:
    """An integer attribute of the first voxel of each grid, int64 [B]; 0 where there is no voxel."""
    values = torch.cat([voxels.attributes[name].long(), voxels.grid.offsets.new_zeros(1)])
    empty = voxels.grid.offsets.diff() == 0
    return values[torch.where(empty, voxels.num_voxels, voxels.grid.offsets[:-1])]
