"""Hyper-parameters of the networks: the VAE, the denoiser and the refiner.

VAE and denoiser exist in two architectures: "modern", which is ours, and "official", the networks of the XCube authors,
layer by layer, so that their checkpoints run. What differs is in `official.py`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from xcube.config import Config

Triple = tuple[int, int, int]
Architecture = Literal["modern", "official"]
Position = Literal["none", "ijk", "embedded", "world"]
POSITION_CHANNELS: dict[str, int] = {"none": 0, "ijk": 3, "embedded": 33, "world": 33}


@dataclass(frozen=True)
class VAEConfig(Config):
    """The sparse structure VAE of one level of the cascade. Depth 0 is its finest grid, depth D - 1 its latent grid.

    The defaults are the modern network; `VAEConfig.official` has those of the official one.

    Args:
        voxel_size: Edge length of a voxel at depth 0 in world units, one number or one per axis.
        architecture: "modern" (residual blocks, strided convolutions, child occupancy) or "official" (the layers of the
            official networks).
        channels: Number of channels at each depth, finest first; one entry per depth, D in all.
        latent_channels: Number of channels of a latent vector.
        hidden: Number of channels of the embedded input.
        dense_neck: Half the edge lengths, in latent voxels, of a box that the latents fill. None keeps the latent grid
            sparse.
        strides: Downsampling factors between consecutive depths, D - 1 triples. None means (2, 2, 2) everywhere.
        dilation: Grids that early dilation enlarges: "all" coarser ones, as in the paper, only the "latent" grid, or
            "none".
        logvar_init: Initial bias of the predicted log-variance. The official architecture ignores it.
        attention: Whether the latent voxels of each grid attend to each other.
        keep: Voxels with which the decoder continues at the next depth in training: the "predicted" ones, or the
            "union" of prediction and ground truth.
        keep_ratio: Largest ratio of predicted to true voxels of a shape for which the "union" is taken; beyond it, the
            decoder continues with the ground truth of that shape.
        max_voxels: Largest number of candidate voxels of a batch at each depth in training; beyond it, the decoder
            continues with the ground truth. No limit applies outside training, where the ground truth is unknown.
        cutoff: Fraction of the box above which a depth below the latent one is emptied in training, as in the official
            code. None disables it.
        box: Number of voxels along each axis at depth 0, needed by `cutoff` only.
        normal: Whether normals are an input. The decoder predicts them then.
        intensity: Whether intensities are an input.
        color: Whether colors are an input. The decoder predicts them then.
        num_labels: Number of semantic classes, as input and output; 0 for none.
        label_dim: Number of channels of the class embedding.
        checkpointing: Whether activations are recomputed in the backward pass to save memory.
    """

    voxel_size: float | tuple[float, float, float] = 1 / 64
    architecture: Architecture = "modern"
    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 8
    hidden: int = 16
    dense_neck: Triple | None = None
    strides: tuple[Triple, ...] | None = None
    dilation: Literal["all", "latent", "none"] = "latent"
    logvar_init: float = -6.0
    attention: bool = False
    keep: Literal["predicted", "union"] = "union"
    keep_ratio: float = 1.5
    max_voxels: int | None = None
    cutoff: float | None = None
    box: Triple | None = None
    normal: bool = True
    intensity: bool = False
    color: bool = False
    num_labels: int = 0
    label_dim: int = 32
    checkpointing: bool = False

    def __post_init__(self) -> None:
        self._check_choices(
            architecture=get_args(Architecture),
            dilation=("all", "latent", "none"),
            keep=("predicted", "union"),
        )
        if not self.channels or min(self.channels) < 1 or self.latent_channels < 1 or self.hidden < 1:
            given = f"{self.channels}, {self.latent_channels} and {self.hidden}"
            raise ValueError(f"channels, latent_channels and hidden must be positive, got {given}")
        if len(self.all_strides) != self.depths - 1 or any(len(s) != 3 or min(s) < 1 for s in self.all_strides):
            raise ValueError(f"strides must be {self.depths - 1} triples for {self.depths} depths, got {self.strides}")
        if len(self.voxel_sizes) != 3 or min(self.voxel_sizes) <= 0:
            raise ValueError(f"voxel_size must be one positive number or three, got {self.voxel_size}")
        for name in ("dense_neck", "box"):
            edges = getattr(self, name)
            if edges is not None and (len(edges) != 3 or min(edges) < 1):
                raise ValueError(f"{name} must be three positive numbers, got {edges}")
        if self.num_labels < 0 or self.label_dim < 1 or self.keep_ratio < 0:
            given = f"{self.num_labels}, {self.keep_ratio} and {self.label_dim}"
            raise ValueError(
                f"num_labels and keep_ratio must not be negative and label_dim must be positive, got {given}"
            )
        if self.max_voxels is not None and self.max_voxels < 1:
            raise ValueError(f"max_voxels must be positive, got {self.max_voxels}")
        if any(stride != (2, 2, 2) for stride in self.all_strides) and self.dilation != "none":
            raise ValueError(
                f"strides other than (2, 2, 2) need dilation 'none', got {self.strides}, {self.dilation!r}"
            )
        if self.cutoff is not None and self.architecture != "official":
            raise ValueError(f"cutoff needs architecture 'official', got {self.architecture!r}")
        if self.cutoff is not None and self.box is None:
            raise ValueError("cutoff is a fraction of a box, so it needs box, got None")

    @property
    def depths(self) -> int:
        """The number of depths D."""
        return len(self.channels)

    @property
    def all_strides(self) -> tuple[Triple, ...]:
        """The downsampling factors from depth 0 to 1, from 1 to 2, and so on: D - 1 triples."""
        return ((2, 2, 2),) * (self.depths - 1) if self.strides is None else self.strides

    @property
    def voxel_sizes(self) -> tuple[float, float, float]:
        """The edge lengths of a voxel at depth 0, one per axis."""
        size = self.voxel_size
        return (size, size, size) if isinstance(size, int | float) else size

    def factor_to(self, depth: int) -> Triple:
        """The downsampling factor per axis from depth 0 to `depth`."""
        x, y, z = (math.prod(stride[axis] for stride in self.all_strides[:depth]) for axis in range(3))
        return x, y, z

    @property
    def factor(self) -> Triple:
        """The downsampling factor per axis from depth 0 to the latent grid."""
        return self.factor_to(self.depths - 1)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the voxel attributes that the encoder takes."""
        takes = {"normal": self.normal, "intensity": self.intensity, "color": self.color, "label": self.num_labels > 0}
        return tuple(name for name, taken in takes.items() if taken)

    @classmethod
    def official(cls, **changes: Any) -> "VAEConfig":
        """The official network: its layers, early dilation of all grids, and predicted voxels only in training."""
        defaults: dict[str, Any] = {"architecture": "official", "hidden": 32, "dilation": "all", "keep": "predicted"}
        return cls(**(defaults | changes))


@dataclass(frozen=True)
class UNetConfig(Config):
    """The denoiser of one level of the cascade. Resolution 0 is the latent grid; each further one is half as fine.

    The defaults are the modern network; `UNetConfig.official` has those of the official one.

    Args:
        latent_channels: Number of channels L of a latent vector.
        architecture: "modern" (average pooling and nearest neighbors between resolutions) or "official" (the layers of
            the official networks: residual blocks between resolutions, which take about half of the time).
        dense: Whether the latent grid is a full box and is computed as a dense volume. Dense convolutions are two to
            three times as fast as sparse ones there. Parameters are the same either way.
        channels: Number of channels at resolution 0.
        multipliers: Number of channels at each resolution in units of `channels`, finest first.
        blocks: Number of residual blocks at each resolution on the way down, and again on the way up.
        attention: Resolutions with self-attention, given by their downsampling factors: 1, 2, 4, and so on. The
            coarsest resolution always has it, between the two blocks in the middle.
        heads: Number of attention heads.
        groups: Number of groups of GroupNorm; where it does not divide the channels, the largest number that divides
            both.
        position: Voxel positions as an input: "none"; "ijk", the coordinates; "embedded", with their sines and
            cosines; "world", world positions with their sines and cosines.
        normal: Whether normals are a condition.
        num_labels: Number of semantic classes as a condition, embedded; 0 for none.
        label_dim: Number of channels of the class embedding.
        extra: Number of channels of any other condition on latent voxels, such as the latents of a coarser level.
        categories: Number of shape categories as a condition; 0 for none.
        text_channels: Number of channels of a text token as a condition; 0 for none.
        checkpointing: Whether activations are recomputed in the backward pass to save memory.
    """

    latent_channels: int = 4
    architecture: Architecture = "modern"
    dense: bool = False
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
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
    checkpointing: bool = False

    def __post_init__(self) -> None:
        self._check_choices(architecture=get_args(Architecture), position=tuple(POSITION_CHANNELS))
        self._check_at_least(1, "latent_channels", "channels", "blocks", "heads", "groups", "label_dim")
        self._check_at_least(0, "num_labels", "extra", "categories", "text_channels")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be positive, got {self.multipliers}")
        if any(factor < 1 or factor & (factor - 1) for factor in self.attention):
            raise ValueError(f"attention must hold powers of two, got {self.attention}")
        if self.channels % 2:
            raise ValueError(f"channels must be even, for sines and cosines of the time, got {self.channels}")
        wrong = [width for width in self.attention_widths if width % self.heads]
        if wrong:
            raise ValueError(f"heads must divide the channels where there is attention, {wrong[0]}, got {self.heads}")

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of channels at each resolution."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def text_everywhere(self) -> bool:
        """Whether a text is read after every block, as in the official sparse network, not only with attention."""
        return self.architecture == "official" and not self.dense and self.text_channels > 0

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """The number of channels of the layers that attend to voxels or to a text."""
        chosen = (w for n, w in enumerate(self.widths) if self.text_everywhere or 1 << n in self.attention)
        return (*chosen, self.widths[-1])

    @property
    def in_channels(self) -> int:
        """The number of input channels of the first convolution."""
        known = POSITION_CHANNELS[self.position] + 3 * self.normal + self.extra
        return self.latent_channels + known + (self.label_dim if self.num_labels else 0)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that the network takes."""
        takes = {
            "normal": self.normal,
            "label": self.num_labels,
            "extra": self.extra,
            "category": self.categories,
            "text": self.text_channels,
        }
        return tuple(name for name, taken in takes.items() if taken)

    @classmethod
    def official(cls, dense: bool, **changes: Any) -> "UNetConfig":
        """The official network: the dense one of the coarse level, or the sparse one of the fine level."""
        defaults: dict[str, Any] = {"architecture": "official", "blocks": 2, "heads": 8, "groups": 32}
        return cls(dense=dense, **(defaults | changes))


@dataclass(frozen=True)
class RefinerConfig(Config):
    """The refiner: a U-Net on the decoded voxels and those around them.

    Args:
        voxel_size: Edge length of a voxel in world units.
        channels: Number of channels at each resolution, finest first; each resolution is half as fine as the last.
        blocks: Number of residual blocks at each resolution on the way down, and again on the way up.
        radius: Largest distance, in voxels along each axis, at which a voxel may be added to the decoded ones.
        normal: Whether normals are an input and an output.
        num_labels: Number of semantic classes, as input and output; 0 for none.
        checkpointing: Whether activations are recomputed in the backward pass to save memory.
        threshold: Probability above which a voxel exists. The F1 score, and with it the IoU, is largest at half of its
            largest value (Lipton et al. 2014, arXiv:1402.1892): below 0.5, and the lower the more voxels are uncertain.
    """

    voxel_size: float = 1 / 64
    channels: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    radius: int = 1
    normal: bool = True
    num_labels: int = 0
    checkpointing: bool = False
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if len(self.channels) < 3 or min(self.channels) < 1:
            raise ValueError(f"channels must be at least three positive numbers, got {self.channels}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie in (0, 1), got {self.threshold}")
        if not self.voxel_size > 0:
            raise ValueError(f"voxel_size must be positive, got {self.voxel_size}")
        self._check_at_least(1, "blocks", "radius")
        self._check_at_least(0, "num_labels")
