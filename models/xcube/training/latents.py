"""Training data of a denoiser: the latents of shapes, the index of each shape, and conditions of whole shapes.

B grids.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import sparsevox as sv
from sparsevox import Voxels
from sparsevox.data import VoxelBudgetSampler
from xcube.data.augment import AugmentedShapes
from xcube.data.loading import ShapeFolder
from xcube.networks.conditions import NO_CLASS, Text, stack_words
from xcube.networks.text_encoder import TextEncoder
from xcube.networks.words import word_numbers
from xcube.training.callbacks import Progress
from xcube.training.config import TrainConfig

SHAPE_INDEX = "shape_index"  # a voxel attribute: the index in the dataset of the shape that the voxel belongs to


class ShapeConditions:
    """Conditions of the whole shapes of a dataset: category, and text or words.

    category: The category of each shape, int64; None without categories.
    text: The embedded texts, each once; None without a text encoder.
    empty_text: The embedding of the empty text; None without a text encoder.
    words: The words of all texts, int64 [T, S]; None without a vocabulary.

    Args:
        names: Names of the shapes, in the order of the dataset.
        categories: Name prefix of the shapes of each category.
        captions: Texts of each shape by its name, in several wordings; shapes without one have the empty text.
        encoder: The text encoder, for texts whose tokens it embeds.
        vocabulary: The words, for texts that the network reads itself. Others are left out.
    """

    def __init__(
        self,
        names: Sequence[str],
        categories: Sequence[str] = (),
        captions: Mapping[str, Sequence[str]] | None = None,
        encoder: TextEncoder | None = None,
        vocabulary: Sequence[str] = (),
    ) -> None:
        self.category: Tensor | None = None
        self.text: Text | None = None
        self.empty_text: Text | None = None
        self.words: Tensor | None = None
        if categories:
            self.category = torch.tensor([category_of(name, categories) for name in names])
        if captions is None or (encoder is None and not vocabulary):
            return
        wordings = [captions.get(name) or [""] for name in names]
        texts = {text: number for number, text in enumerate(sorted({text for some in wordings for text in some}))}
        self.counts = torch.tensor([len(some) for some in wordings])  # wordings of each shape
        self.first = self.counts.cumsum(0) - self.counts  # place of the first one in the list of all
        self.wording = torch.tensor([texts[text] for some in wordings for text in some])
        if encoder is not None:
            self.text = Text.stack([encoder([text]) for text in texts])
            self.empty_text = encoder([""])
        else:
            self.words = stack_words([word_numbers(text, vocabulary, strict=False) for text in texts])

    def of(self, indices: Tensor, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Return "category", "text" and "words", where they exist, of the shapes with these indices [B].

        Args:
            indices: Indices of shapes.
            generator: Random generator on the CPU that chooses one of the wordings of each; the first one without it.
        """
        found: dict[str, Any] = {}
        if self.category is not None:
            found["category"] = self.category.to(indices.device)[indices]
        if self.text is None and self.words is None:
            return found
        chosen = self.first[indices.cpu()]
        if generator is not None:
            chosen = chosen + (torch.rand(len(chosen), generator=generator) * self.counts[indices.cpu()]).long()
        which = self.wording[chosen].to(indices.device)
        if self.text is not None:
            found["text"] = self.text.to(indices.device)[which]
        if self.words is not None:
            found["words"] = self.words.to(indices.device)[which]
        return found


def category_of(name: str, categories: Sequence[str]) -> int:
    """Return the index of the first category that a name begins with, or -1."""
    return next((index for index, prefix in enumerate(categories) if name.startswith(prefix)), NO_CLASS)


class LatentDataset:
    """The shapes of a dataset with the attribute `SHAPE_INDEX`, or their latents once `encode` has been called.

    Augmented shapes change in every epoch. Of their latents, `augment.variants` are kept for each shape, those of the
    first epochs, and each epoch takes the next of them in turn.

    items: Index in the dataset of each item.
    sizes: Number of voxels of each item; once encoded, of its largest latent grid.

    Args:
        shapes: The dataset.
        most: Maximum number of shapes to load, spread evenly over the dataset; None loads all.
    """

    def __init__(self, shapes: ShapeFolder[Voxels] | AugmentedShapes, most: int | None = None) -> None:
        self.shapes = AugmentedShapes(shapes) if isinstance(shapes, ShapeFolder) else shapes
        # Spread evenly, since neighboring names are alike.
        count = len(shapes) if most is None else min(most, len(shapes))
        self.items = torch.linspace(0, len(shapes) - 1, count, dtype=torch.float64).round().long().tolist()
        self.sizes = [shapes.sizes[item] for item in self.items]
        self._encoded: dict[tuple[int, int], Voxels] = {}  # by variant and item

    @property
    def variants(self) -> int:
        """Number of latents that are kept of each shape."""
        return self.shapes.augment.variants if self.shapes.augment.active else 1

    def encode(
        self, function: Callable[[Voxels], Voxels], config: TrainConfig, progress: Progress | None = None
    ) -> None:
        """Replace the shapes by the results of a function of batches of them, kept in CPU memory."""
        sampler = VoxelBudgetSampler(
            self.sizes, config.voxels, max_items=config.batch_size, shuffle=False, rank=0, replicas=1
        )
        batches = [(variant, items) for variant in range(self.variants) for items in sampler]
        for variant, items in progress.iterate(batches, "encoding") if progress else batches:
            encoded = function(sv.collate([self.variant(item, variant) for item in items])).to("cpu")
            self._encoded |= {(variant, item): one for item, one in zip(items, encoded.unbind(), strict=True)}
        self.sizes = [
            max(self._encoded[variant, item].num_voxels for variant in range(self.variants))
            for item in range(len(self))
        ]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, item: int) -> Voxels:
        return self.variant(item, 0)

    def variant(self, item: int, epoch: int) -> Voxels:
        """Load a shape or its latents, with its change in an epoch."""
        encoded = self._encoded.get((epoch % self.variants, item))
        if encoded is not None:
            return encoded
        index = self.items[item]
        voxels = self.shapes.variant(index, epoch)
        return voxels.with_attributes(**{SHAPE_INDEX: torch.full((voxels.num_voxels,), index, dtype=torch.int32)})

    def __repr__(self) -> str:
        return f"LatentDataset({self.shapes!r})"


def with_shape_index(latents: Voxels, voxels: Voxels) -> Voxels:
    """Give latents the shape index of the voxels that they encode, if these have one."""
    if SHAPE_INDEX not in voxels.attributes:
        return latents
    return latents.with_attributes(**{SHAPE_INDEX: first_value(voxels, SHAPE_INDEX)[latents.grid.batch.long()]})


def first_value(voxels: Voxels, name: str) -> Tensor:
    """Return an integer attribute of the first voxel of each grid, int64 [B]; 0 for an empty grid."""
    values = torch.cat([voxels.attributes[name].long(), voxels.grid.offsets.new_zeros(1)])
    empty = voxels.grid.offsets.diff() == 0
    return values[torch.where(empty, voxels.num_voxels, voxels.grid.offsets[:-1])]
