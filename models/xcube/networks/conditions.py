"""What a denoiser is told besides the noisy latents.

M latent voxels, B grids, S tokens.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sparsevox import Grid, Voxels
from xcube.networks.configs import UNetConfig

NO_CLASS = -1  # the label or category of what has none


@dataclass(frozen=True)
class Text:
    """Embedded texts, padded to the longest.

    tokens: [B, S, channels].
    mask: Which tokens exist, bool [B, S]; an item may have none.

    Raises:
        ValueError: If shapes do not fit.
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
        """On another device."""
        return Text(self.tokens.to(device), self.mask.to(device))

    def padded(self, length: int) -> "Text":
        """With so many tokens, at least as many as there are."""
        more = length - self.tokens.shape[1]
        pad = torch.nn.functional.pad
        return Text(pad(self.tokens, (0, 0, 0, more)), pad(self.mask, (0, more)))

    @classmethod
    def stack(cls, texts: Sequence["Text"]) -> "Text":
        """One batch of all of them, in order."""
        longest = max(text.tokens.shape[1] for text in texts)
        padded = [text.padded(longest) for text in texts]
        return cls(torch.cat([t.tokens for t in padded]), torch.cat([t.mask for t in padded]))


@dataclass(frozen=True)
class Conditions:
    """Conditions of a batch of latent grids; each may be missing. `Conditions()` has none.

    normal: Normals of the coarser level, [M, 3]; zero where there is none.
    label: Semantic classes of the coarser level, integers [M]; -1 where there is none.
    extra: Whatever else is known of latent voxels, [M, channels]; zero where it is not.
    category: Class of each shape, integers [B]; -1 for none.
    text: A text for each shape.
    """

    normal: Tensor | None = None
    label: Tensor | None = None
    extra: Tensor | None = None
    category: Tensor | None = None
    text: Text | None = None

    @classmethod
    def from_voxels(cls, voxels: Voxels, config: UNetConfig, **others: Any) -> "Conditions":
        """Those of its conditions that a network takes from the voxels of the coarser level, its latent grid.

        Args:
            voxels: With the attributes "normal", "label" and "extra", as far as the network takes them.
            config: Of the network.
            others: Conditions of whole shapes: `category` and `text`.

        Raises:
            KeyError: If voxels lack an attribute.
        """
        wanted = [name for name in ("normal", "label", "extra") if name in config.conditions]
        missing = [name for name in wanted if name not in voxels.attributes]
        if missing:
            raise KeyError(f"the model needs the attributes {wanted}, got voxels without {missing}")
        made: dict[str, Any] = {name: voxels.attributes[name] for name in wanted}
        return cls(**made, **others)

    @classmethod
    def stack(cls, conditions: Sequence["Conditions"]) -> "Conditions":
        """The conditions of one batch of all batches, in order.

        Raises:
            ValueError: If there are none, or one has conditions that another has not.
        """
        if not conditions:
            raise ValueError("conditions must hold one element at least, got none")
        names = conditions[0].names
        if any(each.names != names for each in conditions):
            raise ValueError(
                f"conditions must be the same ones in all batches, got {[each.names for each in conditions]}"
            )
        joined: dict[str, Any] = {
            name: torch.cat([getattr(each, name) for each in conditions]) for name in names if name != "text"
        }
        texts = [each.text for each in conditions if each.text is not None]
        return cls(**joined, text=Text.stack(texts) if texts else None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of those that there are."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def to(self, device: torch.device | str) -> "Conditions":
        """On another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.names})

    def drop(
        self, which: Tensor, grid: Grid, names: Collection[str] | None = None, *, empty_text: Text | None = None
    ) -> "Conditions":
        """The same without the conditions of some shapes: as a network is trained for guidance.

        Args:
            which: Whose, bool [B].
            grid: The latent grids.
            names: Of the conditions to drop; all by default.
            empty_text: What stands for no text, one item of it; by default no token at all.

        Raises:
            ValueError: If `which` does not have an entry for each grid, or a name is unknown.
        """
        if which.shape != (grid.batch_size,) or which.dtype != torch.bool:
            raise ValueError(f"which must be bool [{grid.batch_size}], got {which.dtype} {list(which.shape)}")
        known = {f.name for f in fields(self)}
        if names is not None and not set(names) <= known:
            raise ValueError(f"names must be among {', '.join(sorted(known))}, got {', '.join(sorted(names))}")
        which = which.to(grid.device)
        rows = which[grid.batch.long()]
        dropped: dict[str, Any] = {}
        for name in self.names:
            value = getattr(self, name)
            if names is not None and name not in names:
                continue
            if name == "text":
                dropped[name] = _without(value, which, empty_text)
            elif name == "category":
                dropped[name] = torch.where(which, NO_CLASS, value)
            elif name == "label":
                dropped[name] = torch.where(rows, NO_CLASS, value)
            else:
                dropped[name] = torch.where(rows[:, None], 0, value)
        return replace(self, **dropped)

    def check(self, grid: Grid, config: UNetConfig) -> None:
        """Raise ValueError unless these are the conditions of a network, on these latent grids."""
        missing, more = set(config.conditions) - set(self.names), set(self.names) - set(config.conditions)
        if missing or more:
            takes, got = (", ".join(names) or "nothing" for names in (config.conditions, self.names))
            raise ValueError(f"conditions must be {takes}, as the model takes, got {got}")
        rows, items = grid.num_voxels, grid.batch_size
        shapes = {
            "normal": [rows, 3],
            "label": [rows],
            "extra": [rows, config.extra],
            "category": [items],
        }
        for name in self.names:
            value = self.text.tokens if name == "text" and self.text is not None else getattr(self, name)
            expected = [items, value.shape[1], config.text_channels] if name == "text" else shapes[name]
            if list(value.shape) != expected:
                raise ValueError(f"conditions.{name} must have shape {expected}, got {list(value.shape)}")
            if name in ("label", "category"):
                _check_range(name, value, config.num_labels if name == "label" else config.categories)


def _check_range(name: str, value: Tensor, count: int) -> None:
    if value.is_floating_point():
        raise ValueError(f"conditions.{name} must be integers, got {value.dtype}")
    # Waiting for a GPU to know costs more than the kernel's own check of the table.
    if not value.is_cuda and value.numel() and not -1 <= int(value.min()) <= int(value.max()) < count:
        raise ValueError(f"conditions.{name} must lie in [-1, {count}), got {int(value.min())} to {int(value.max())}")


def _without(text: Text, which: Tensor, empty: Text | None) -> Text:
    """The empty text in place of those of some items."""
    if empty is None:
        return Text(text.tokens, text.mask & ~which[:, None])
    empty = empty.to(text.tokens.device)
    if len(empty) != 1:
        raise ValueError(f"empty_text must be one text, got {len(empty)}")
    longest = max(text.tokens.shape[1], empty.tokens.shape[1])
    text, empty = text.padded(longest), empty.padded(longest)
    tokens = torch.where(which[:, None, None], empty.tokens.to(text.tokens.dtype), text.tokens)
    return Text(tokens, torch.where(which[:, None], empty.mask, text.mask))
