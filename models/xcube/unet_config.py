"""Hyper-parameters of the denoisers."""

from dataclasses import dataclass
from typing import Any, Literal

from xcube.config import Config

Position = Literal["none", "ijk", "embedded", "world"]
POSITION_CHANNELS: dict[str, int] = {"none": 0, "ijk": 3, "embedded": 33, "world": 33}


@dataclass(frozen=True)
class UNetConfig(Config):
    """The denoiser of one level of the cascade. Level 0 is that of the latents, each further one half as fine.

    The defaults are the `modern` network; `UNetConfig.paper` has those of the released ones.

    Args:
        latent_channels: L, of a latent vector.
        dense: Whether the latent grid is a full box and is computed as a volume: dense convolutions are two to three
            times as fast as sparse ones there. Parameters are the same either way.
        channels: At level 0.
        multipliers: Channels of each level, in units of `channels`.
        blocks: Residual blocks at each level, on the way down and on the way up.
        resample: How to get from level to level: "plain", by pooling and nearest neighbours; or in a residual "block",
            as in the release. What such blocks give on the way down is handed across, too, so that with them there is
            one block more at each level on the way up. They take about half of the time.
        attention: At which levels voxels attend to each other, as ratios of their voxels to those of level 0: 1, 2, 4,
            and so on. Those of the last level always do, between its two halves.
        heads: Of attention.
        groups: Of GroupNorm; where channels are no multiple of it, the most that divides both.
        position: What the network sees of coordinates: nothing; "ijk", as they are; "embedded", their sines and cosines
            too; "world", sines and cosines of positions.
        normal: Whether it takes normals.
        num_labels: Semantic classes that it takes, embedded; 0 for none.
        label_dim: Of their embedding.
        extra: Channels of whatever else is known of latent voxels, such as the latents of a coarser level.
        categories: Classes of whole shapes; 0 for none.
        text_channels: Of a token of an embedded text; 0 for none.
        text_everywhere: Whether text is read after every block, and not only where there is attention.
        inner: Channels in which text is read on the way up: those of the "level", or of the "last" level.
        skip_first: Whether the channels from the way down come before those from below.
        pool: Coarser features are the mean over the "active" voxels, or their sum over the volume of the "window".
        text_eps: Of the GroupNorm before text is read.
        checkpointing: Whether activations are computed again in the backward pass, to save memory.
    """

    latent_channels: int = 4
    dense: bool = False
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    resample: Literal["plain", "block"] = "plain"
    attention: tuple[int, ...] = (4,)
    heads: int = 4
    groups: int = 8
    position: Position = "none"
    normal: bool = False
    num_labels: int = 0
    label_dim: int = 32
    extra: int = 0
    categories: int = 0
    text_channels: int = 0
    text_everywhere: bool = False
    inner: Literal["level", "last"] = "level"
    skip_first: bool = True
    pool: Literal["active", "window"] = "active"
    text_eps: float = 1e-5
    checkpointing: bool = False

    def __post_init__(self) -> None:
        choices = {
            "resample": ("plain", "block"),
            "position": tuple(POSITION_CHANNELS),
            "inner": ("level", "last"),
            "pool": ("active", "window"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("latent_channels", "channels", "blocks", "heads", "groups", "label_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_labels", "extra", "categories", "text_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be positive, got {self.multipliers}")
        if any(ratio < 1 or ratio & (ratio - 1) for ratio in self.attention):
            raise ValueError(f"attention must hold powers of two, got {self.attention}")
        if self.channels % 2:
            raise ValueError(f"channels must be even, for sines and cosines of the time, got {self.channels}")
        wrong = [width for width in self.attending if width % self.heads]
        if wrong:
            raise ValueError(f"heads must divide the channels where there is attention, {wrong[0]}, got {self.heads}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def attending(self) -> tuple[int, ...]:
        """Channels of the levels at which there is attention of any kind."""
        everywhere = self.text_everywhere and self.text_channels > 0
        levels = (w for n, w in enumerate(self.widths) if everywhere or 1 << n in self.attention)
        return (*levels, self.widths[-1])

    @property
    def inputs(self) -> int:
        """Channels of what goes into the first convolution."""
        known = POSITION_CHANNELS[self.position] + 3 * self.normal + self.extra
        return self.latent_channels + known + (self.label_dim if self.num_labels else 0)

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the conditions that the network takes."""
        takes = {
            "normal": self.normal,
            "label": self.num_labels,
            "extra": self.extra,
            "category": self.categories,
            "text": self.text_channels,
        }
        return tuple(name for name, some in takes.items() if some)

    @classmethod
    def paper(cls, dense: bool, **changes: Any) -> "UNetConfig":
        """The released networks of the coarse stage, which are dense, and of the fine one."""
        released: dict[str, Any] = {
            "dense": dense,
            "blocks": 2,
            "resample": "block",
            "heads": 8,
            "groups": 32,
            "skip_first": not dense,
            "pool": "window",
        }
        if changes.get("text_channels"):
            released |= {"text_eps": 1e-6} if dense else {"text_everywhere": True, "inner": "last"}
        return cls(**(released | changes))
