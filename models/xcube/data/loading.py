"""Datasets on disk as a `torch.utils.data.Dataset`."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TypeVar, cast, overload

from torch.utils.data import Dataset

from sparsevox import checks
from sparsevox.shapes import Voxels
from xcube.data.dataset import read_card, read_index, read_shape

Levels = TypeVar("Levels", Voxels, list[Voxels])


class ShapeFolder(Dataset[Levels]):
    """The shapes of one split of a dataset made by `build`.

    An item is one level of a shape, or a list of several, each a `Voxels` of one grid on the CPU; `sv.collate` makes
    batches of them. The number of voxels of each item is known without opening its file:

        shapes = ShapeFolder("chairs", "train", level=1)
        sampler = VoxelBudgetSampler(shapes.sizes, budget=500_000)
        loader = DataLoader(shapes, batch_sampler=sampler, collate_fn=sv.collate, num_workers=4)

    root: The folder.
    card: Description of the dataset: box, attributes, license.
    entries: The shapes of the split, in the order of the items, sorted by name.
    levels: Indices of the levels of an item; 0 is the coarsest.
    sizes: Number of voxels of each item, summed over its levels.

    Args:
        root: The folder of the dataset.
        split: The split to load; None loads all shapes.
        level: The level to load; 0 is the coarsest, -1 the finest. With a sequence of levels, items are lists.

    Raises:
        FileNotFoundError: If the card or the index is missing; for an item, if its file is missing.
        IndexError: If there is no such level.
        ValueError: If the folder is of another version, damaged, or has no such split; for an item, if its file is
            damaged or does not fit the card or the index. The message names the file.
    """

    @overload
    def __init__(
        self: "ShapeFolder[Voxels]", root: str | PathLike[str], split: str | None = "train", *, level: int = -1
    ) -> None: ...

    @overload
    def __init__(
        self: "ShapeFolder[list[Voxels]]",
        root: str | PathLike[str],
        split: str | None = "train",
        *,
        level: Sequence[int],
    ) -> None: ...

    def __init__(
        self, root: str | PathLike[str], split: str | None = "train", *, level: int | Sequence[int] = -1
    ) -> None:
        self.root = Path(root)
        self.card = read_card(root)
        everything = read_index(root, self.card)
        self.entries = [entry for entry in everything if split is None or entry.split == split]
        if split is not None and not self.entries:
            raise ValueError(f"split must be one of {sorted({e.split for e in everything})}, got {split!r} for {root}")
        self._single = isinstance(level, int)
        count = len(self.card.box.levels)
        levels = [checks.integer("level", each) for each in ([level] if isinstance(level, int) else level)]
        if not levels or not all(-count <= each < count for each in levels):
            raise IndexError(f"level must be an index of the levels {self.card.box.levels}, got {level}")
        self.levels = [each % count for each in levels]
        self.sizes = [sum(entry.voxels[each] for each in self.levels) for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, item: int) -> Levels:
        entry = self.entries[item]
        levels = [read_shape(self.root, self.card, entry, level) for level in self.levels]
        return cast(Levels, levels[0] if self._single else levels)

    def __repr__(self) -> str:
        levels = ", ".join(str(self.card.box.levels[level]) for level in self.levels)
        return f"ShapeFolder({self.root}, {len(self):,} shapes, levels: {levels}, {sum(self.sizes):,} voxels)"
