"""The conditions of a denoiser: everything that it takes besides noisy latents and their time.

M latent voxels, B grids, S tokens.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sparsevox import Grid, Voxels
from xcube.networks.configs import UNetConfig

OF_VOXELS = ("normal", "color", "fill", "label")  # conditions that are attributes of the coarser level
Droppable = Literal["normal", "color", "fill", "label", "category", "text", "words", "observed"]
DROPPED: tuple[Droppable, ...] = ("category", "text", "words")  # dropped in training by default, for guidance
NO_FILL = -1.0  # the solid fraction of a voxel that has none
NO_CLASS = -1  # the label of a voxel, or the category of a shape, that has none
NO_WORD = -1  # what fills up captions with fewer words


@dataclass(frozen=True)
class Text:
    """Embedded texts, padded to the longest.

    tokens: The tokens, [B, S, channels].
    mask: Which tokens exist, bool [B, S]. A text may have none.

    Raises:
        ValueError: If the shapes do not fit.
    """

    tokens: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.mask.shape != self.tokens.shape[:2] or self.mask.dtype != torch.bool:
            raise ValueError(
                f"tokens must be [B, S, C] and mask bool [B, S], got {list(self.tokens.shape)} and {self.mask.dtype} "
                f"{list(self.mask.shape)}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, items: Tensor | slice) -> "Text":
        return Text(self.tokens[items], self.mask[items])

    def to(self, device: torch.device | str) -> "Text":
        """Move the texts to a device."""
        return Text(self.tokens.to(device), self.mask.to(device))

    def padded(self, length: int) -> "Text":
        """Pad the texts to `length` tokens, which must not be less than S."""
        more = length - self.tokens.shape[1]
        pad = torch.nn.functional.pad
        return Text(pad(self.tokens, (0, 0, 0, more)), pad(self.mask, (0, more)))

    @classmethod
    def stack(cls, texts: Sequence["Text"]) -> "Text":
        """Join several batches of texts to one, in order."""
        longest = max(text.tokens.shape[1] for text in texts)
        padded = [text.padded(longest) for text in texts]
        return cls(torch.cat([t.tokens for t in padded]), torch.cat([t.mask for t in padded]))


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch of latent grids; each may be None. `Conditions()` has none.

    normal: Normals of the coarser level, [M, 3]; zero for voxels without one.
    color: Colors of the coarser level in [0, 1], [M, 3]; zero for voxels without one.
    fill: Solid fractions of the coarser level, [M]; -1 for voxels without one.
    label: Semantic labels of the coarser level, integers [M]; -1 for voxels without one.
    extra: Other features of latent voxels, [M, channels]; zero for voxels without them.
    observed: States of the finer voxels in each latent voxel, [M, voxels]: 1 for full, -1 for empty, 0 for unknown. At
        a level with solid fractions, these give full voxels a state from 0.5 to 1.
    category: Category of each shape, integers [B]; -1 for none.
    text: A text for each shape.
    words: The words of a caption for each shape, numbers in a vocabulary [B, S]; -1 where there is none.
    """

    normal: Tensor | None = None
    color: Tensor | None = None
    fill: Tensor | None = None
    label: Tensor | None = None
    extra: Tensor | None = None
    observed: Tensor | None = None
    category: Tensor | None = None
    text: Text | None = None
    words: Tensor | None = None

    @classmethod
    def from_voxels(cls, voxels: Voxels, config: UNetConfig, **others: Any) -> "Conditions":
        """Take the conditions of a denoiser from the voxels of the coarser level, which are its latent grid.

        Args:
            voxels: Voxels with those of the attributes `OF_VOXELS` and "extra" that the denoiser takes.
            config: The configuration of the denoiser.
            others: Conditions of whole shapes: `category`, `text`, and `words`, by default none; and `observed`, by
                default nothing.

        Raises:
            KeyError: If the voxels lack an attribute.
        """
        wanted = [name for name in (*OF_VOXELS, "extra") if name in config.conditions]
        missing = [name for name in wanted if name not in voxels.attributes]
        if missing:
            raise KeyError(f"the model needs the attributes {wanted}, got voxels without {missing}")
        made: dict[str, Any] = {name: voxels.attributes[name] for name in wanted}
        if config.observed:
            made["observed"] = torch.zeros(voxels.num_voxels, config.observed, device=voxels.device)
        if config.words:
            made["words"] = torch.full((voxels.batch_size, 1), NO_WORD, device=voxels.device)
        return cls(**(made | others))

    @classmethod
    def stack(cls, conditions: Sequence["Conditions"]) -> "Conditions":
        """Join the conditions of several batches to those of one, in order.

        Raises:
            ValueError: If `conditions` is empty, or some have conditions that others lack.
        """
        if not conditions:
            raise ValueError("conditions must hold at least one element, got none")
        names = conditions[0].names
        if any(each.names != names for each in conditions):
            given = [each.names for each in conditions]
            raise ValueError(f"conditions must be the same ones in all batches, got {given}")
        joined: dict[str, Any] = {
            name: torch.cat([getattr(each, name) for each in conditions])
            for name in names
            if name not in ("text", "words")
        }
        if "words" in names:
            joined["words"] = stack_words([each.words for each in conditions if each.words is not None])
        texts = [each.text for each in conditions if each.text is not None]
        return cls(**joined, text=Text.stack(texts) if texts else None)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conditions that are not None."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def to(self, device: torch.device | str) -> "Conditions":
        """Move the conditions to a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.names})

    def drop(
        self, which: Tensor, grid: Grid, names: Collection[str] | None = None, *, empty_text: Text | None = None
    ) -> "Conditions":
        """Remove the conditions of some shapes, as training for classifier-free guidance does.

        Args:
            which: The shapes whose conditions are removed, bool [B].
            grid: The latent grids.
            names: The names of the conditions to remove; all by default.
            empty_text: The embedding of the empty text, a batch of one; by default a text without tokens.

        Raises:
            ValueError: If `which` is not bool with an entry for each grid, or a name is unknown.
        """
        if which.shape != (grid.batch_size,) or which.dtype != torch.bool:
            raise ValueError(f"which must be bool [{grid.batch_size}], got {which.dtype} {list(which.shape)}")
        known = {f.name for f in fields(self)}
        if names is not None and not set(names) <= known:
            raise ValueError(f"names must be among {', '.join(sorted(known))}, got {', '.join(sorted(names))}")
        which = which.to(grid.device)
        rows = which[grid.batch.long()]  # [M]
        dropped: dict[str, Any] = {}
        for name in self.names:
            value = getattr(self, name)
            if names is not None and name not in names:
                continue
            if name == "text":
                dropped[name] = _replace_texts(value, which, empty_text)
            elif name == "category":
                dropped[name] = torch.where(which, NO_CLASS, value)
            elif name == "words":
                dropped[name] = torch.where(which[:, None], NO_WORD, value)
            elif name in ("fill", "label"):
                dropped[name] = torch.where(rows, NO_FILL if name == "fill" else NO_CLASS, value)
            else:
                dropped[name] = torch.where(rows[:, None], 0, value)
        return replace(self, **dropped)

    def check(self, grid: Grid, config: UNetConfig) -> None:
        """Raise ValueError unless these are the conditions of a denoiser on these latent grids."""
        wanted, given = config.conditions, self.names
        if set(wanted) != set(given):
            takes, got = (", ".join(names) or "nothing" for names in (wanted, given))
            raise ValueError(f"conditions must be {takes}, as the model takes, got {got}")
        voxels, shapes = grid.num_voxels, grid.batch_size
        expected = {
            "normal": [voxels, 3],
            "color": [voxels, 3],
            "fill": [voxels],
            "label": [voxels],
            "extra": [voxels, config.extra],
            "observed": [voxels, config.observed],
            "category": [shapes],
        }
        for name in given:
            value = self.text.tokens if name == "text" and self.text is not None else getattr(self, name)
            shape = [shapes, *value.shape[1:2]] if name == "words" else expected.get(name)
            if shape is None:
                shape = [shapes, value.shape[1], config.text_channels]
            if list(value.shape) != shape:
                raise ValueError(f"conditions.{name} must have shape {shape}, got {list(value.shape)}")
            counts = {"label": config.num_labels, "category": config.categories, "words": config.words}
            if name in counts:
                _check_range(name, value, counts[name])


def stack_words(captions: Sequence[Tensor]) -> Tensor:
    """Join the words of several batches of captions, [B, S] each, to those of one, in order."""
    longest = max(words.shape[1] for words in captions)
    pad = torch.nn.functional.pad
    return torch.cat([pad(words, (0, longest - words.shape[1]), value=NO_WORD) for words in captions])


def _check_range(name: str, value: Tensor, count: int) -> None:
    if value.is_floating_point():
        raise ValueError(f"conditions.{name} must be integers, got {value.dtype}")
    # On a GPU, the embedding kernel checks its indices itself; a check here would wait for the device.
    if not value.is_cuda and value.numel() and not -1 <= int(value.min()) <= int(value.max()) < count:
        raise ValueError(f"conditions.{name} must lie in [-1, {count}), got {int(value.min())} to {int(value.max())}")


def _replace_texts(text: Text, which: Tensor, empty: Text | None) -> Text:
    """Put the empty text in place of some texts of a batch."""
    if empty is None:
        return Text(text.tokens, text.mask & ~which[:, None])
    empty = empty.to(text.tokens.device)
    if len(empty) != 1:
        raise ValueError(f"empty_text must be one text, got {len(empty)}")
    longest = max(text.tokens.shape[1], empty.tokens.shape[1])
    text, empty = text.padded(longest), empty.padded(longest)
    tokens = torch.where(which[:, None, None], empty.tokens.to(text.tokens.dtype), text.tokens)
    return Text(tokens, torch.where(which[:, None], empty.mask, text.mask))
