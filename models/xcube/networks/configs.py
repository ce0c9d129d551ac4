"""Hyper-parameters of the networks: the VAE, the denoiser and the refiner."""

from dataclasses import dataclass
from typing import Any, Literal

from xcube.config import Config

Triple = tuple[int, int, int]
Position = Literal["none", "ijk", "embedded", "world"]
POSITION_CHANNELS: dict[str, int] = {"none": 0, "ijk": 3, "embedded": 33, "world": 33}


@dataclass(frozen=True)
class VAEConfig(Config):
    """The sparse structure VAE of one level of the cascade. Depth 0 is its finest grid, depth D - 1 its latent grid.

    The defaults are the `modern` network; `VAEConfig.official` has those of the released ones.

    Args:
        voxel_size: Edge of a voxel at depth 0, world units.
        channels: Of the features at each depth, from 0 on; their number is D.
        latent_channels: Of a latent vector.
        hidden: Channels of the embedded input.
        dense_neck: Half the edges of a box of latent voxels; latents fill it. None keeps the latent grid sparse.
        strides: Ratio of voxels of one depth and the next, D - 1 triples; (2, 2, 2) by default.
        dilation: Which grids are enlarged by early dilation: "all" coarser ones, as in the paper, the "latent" grid
            alone, or "none".
        block: "gcr": GroupNorm, convolution, ReLU, twice; "residual": GroupNorm, SiLU, convolution, twice, and a skip.
        pooling: "max", or "strided": a convolution of kernel 2 and stride 2.
        upsample: "nearest", or "shuffle": a linear map to the channels of all children.
        child_masks: Whether a voxel decides for its children before they exist, and not they for themselves.
        bottleneck: "relu": a block ends in mean and log-variance, both positive; "linear": a linear map does.
        logvar_init: Initial bias of the log-variance of a linear bottleneck.
        attention: Whether latents attend to each other, grid by grid.
        keep: What goes on to the next depth in training: "predicted", or "union" of prediction and truth.
        keep_ratio: With "union", a shape whose prediction has more voxels than this times the truth gets the truth.
        max_voxels: In training, candidates of a depth beyond this number for the batch are those of the truth only.
            Elsewhere no truth is known, and nothing is cut.
        cutoff: The release's counter-measure: in training, a depth below the latent one where more than this share of
            the box exists is emptied. None for none.
        box: Voxels along each axis at depth 0; only `cutoff` needs it.
        normal: Whether voxels have that attribute as input; a normal and a color are predicted too.
        intensity: Whether voxels have that attribute as input; a normal and a color are predicted too.
        color: Whether voxels have that attribute as input; a normal and a color are predicted too.
        num_labels: Semantic classes, input and output; 0 for none.
        label_dim: Of their embedding.
        checkpointing: Whether activations are computed again in the backward pass, to save memory.
    """

    voxel_size: float | tuple[float, float, float] = 1 / 64
    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 8
    hidden: int = 16
    dense_neck: Triple | None = None
    strides: tuple[Triple, ...] | None = None
    dilation: Literal["all", "latent", "none"] = "latent"
    block: Literal["gcr", "residual"] = "residual"
    pooling: Literal["max", "strided"] = "strided"
    upsample: Literal["nearest", "shuffle"] = "shuffle"
    child_masks: bool = True
    bottleneck: Literal["relu", "linear"] = "linear"
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
        choices = {
            "dilation": ("all", "latent", "none"),
            "block": ("gcr", "residual"),
            "pooling": ("max", "strided"),
            "upsample": ("nearest", "shuffle"),
            "bottleneck": ("relu", "linear"),
            "keep": ("predicted", "union"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not self.channels or min(self.channels) < 1 or self.latent_channels < 1 or self.hidden < 1:
            raise ValueError(f"channels must be positive, got {self.channels}, {self.latent_channels}, {self.hidden}")
        if len(self.all_strides) != self.depths - 1 or any(len(s) != 3 or min(s) < 1 for s in self.all_strides):
            raise ValueError(f"strides must be {self.depths - 1} triples for {self.depths} depths, got {self.strides}")
        if len(self.voxel_sizes) != 3 or min(self.voxel_sizes) <= 0:
            raise ValueError(f"voxel_size must be one positive number or three, got {self.voxel_size}")
        for name in ("dense_neck", "box"):
            edges = getattr(self, name)
            if edges is not None and (len(edges) != 3 or min(edges) < 1):
                raise ValueError(f"{name} must be three positive numbers, got {edges}")
        if self.num_labels < 0 or self.label_dim < 1 or self.keep_ratio < 0:
            given = f"{self.num_labels}, {self.label_dim} and {self.keep_ratio}"
            raise ValueError(f"num_labels and keep_ratio must not be negative, label_dim positive, got {given}")
        if self.max_voxels is not None and self.max_voxels < 1:
            raise ValueError(f"max_voxels must be positive, got {self.max_voxels}")
        isotropic = all(stride == (2, 2, 2) for stride in self.all_strides)
        if not isotropic and self.dilation != "none":
            raise ValueError("strides other than 2 need dilation 'none'")
        if self.upsample == "shuffle" and self.block == "gcr":
            raise ValueError("upsample 'shuffle' needs block 'residual'")
        if self.cutoff is not None and self.box is None:
            raise ValueError("cutoff is a share of a box, so it needs box")

    @property
    def depths(self) -> int:
        """D."""
        return len(self.channels)

    @property
    def all_strides(self) -> tuple[Triple, ...]:
        """Ratios of voxels of depths 0 and 1, 1 and 2, and so on."""
        return ((2, 2, 2),) * (self.depths - 1) if self.strides is None else self.strides

    @property
    def voxel_sizes(self) -> tuple[float, float, float]:
        """At depth 0, an edge an axis."""
        size = self.voxel_size
        return (size, size, size) if isinstance(size, int | float) else size

    @property
    def factor(self) -> Triple:
        """Ratio of latent voxels and those of depth 0."""
        x, y, z = 1, 1, 1
        for a, b, c in self.all_strides:
            x, y, z = x * a, y * b, z * c
        return x, y, z

    @classmethod
    def official(cls, **changes: Any) -> "VAEConfig":
        """The released networks: GroupNorm-convolution-ReLU, max pooling, a bottleneck that ends in ReLU."""
        released: dict[str, Any] = {
            "hidden": 32,
            "dilation": "all",
            "block": "gcr",
            "pooling": "max",
            "upsample": "nearest",
            "child_masks": False,
            "bottleneck": "relu",
            "keep": "predicted",
        }
        return cls(**(released | changes))


@dataclass(frozen=True)
class UNetConfig(Config):
    """The denoiser of one level of the cascade. Level 0 is that of the latents, each further one half as fine.

    The defaults are the `modern` network; `UNetConfig.official` has those of the released ones.

    Args:
        latent_channels: L, of a latent vector.
        dense: Whether the latent grid is a full box and is computed as a volume: dense convolutions are two to three
            times as fast as sparse ones there. Parameters are the same either way.
        channels: At level 0.
        multipliers: Channels of each level, in units of `channels`.
        blocks: Residual blocks at each level, on the way down and on the way up.
        resample: How to get from level to level: "plain", by pooling and nearest neighbors; or in a residual "block",
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
    def conditions(self) -> tuple[str, ...]:
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
    def official(cls, dense: bool, **changes: Any) -> "UNetConfig":
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


@dataclass(frozen=True)
class RefinerConfig(Config):
    """A U-Net on the candidates.

    Args:
        voxel_size: Edge of a voxel, world units.
        channels: Of the features at each resolution, from that of the candidates on; each is half as fine as the last.
        blocks: Residual blocks at each resolution, on the way down and on the way up.
        radius: How far from the decode a voxel may be added, in voxels.
        normal: Whether voxels have normals.
        num_labels: Semantic classes, 0 for none.
        checkpointing: Whether activations are computed again in the backward pass, to save memory.
        threshold: The probability above which a voxel exists. The F1 score, and with it the IoU, is best at half of its
            best value (Lipton et al. 2014, arXiv:1402.1892): below 0.5, the lower the more voxels are in doubt.
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
        if self.blocks < 1 or self.radius < 1 or self.num_labels < 0:
            raise ValueError(f"blocks and radius must be at least 1, got {self.blocks} and {self.radius}")
