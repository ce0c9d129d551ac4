"""Hyperparameters of the networks: the VAE, the denoiser and the refiner.

VAE and denoiser exist in two architectures: "modern", which is ours, and "official", the networks of the XCube authors,
layer by layer, so that their checkpoints run. The layers of "official" are in `official.py`.
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
    """Hyperparameters of the sparse structure VAE of one level of the cascade.

    The VAE has D resolutions: 0 is its finest grid, D - 1 its latent grid. The defaults are the modern network;
    `VAEConfig.official` has those of the official one.

    Args:
        voxel_size: Edge length of a voxel at resolution 0 in world units, one number or one per axis.
        architecture: "modern" (residual blocks, strided convolutions, child occupancy) or "official" (the layers of the
            official networks).
        channels: Number of channels at each resolution, finest first; one entry per resolution.
        latent_channels: Number of channels of a latent vector.
        hidden: Number of channels of the input embedding.
        dense_neck: Half the edge lengths, in latent voxels, of a dense box to use as the latent grid. None keeps the
            latent grid sparse.
        strides: Downsampling factors between consecutive resolutions, one triple per step. None means (2, 2, 2)
            everywhere.
        dilation: Grids that early dilation enlarges: "all" grids but the finest, as in the paper; only the "latent"
            grid; or "none".
        logvar_init: Initial bias of the predicted log-variance. The official architecture ignores it.
        attention: Whether the latent voxels of each grid attend to each other.
        keep: Voxels that the decoder keeps in training: the "predicted" ones, or the "union" of prediction and
            ground truth.
        keep_ratio: Maximum ratio of predicted to true voxels of a shape for which "union" adds the predicted ones;
            above it, the decoder keeps only the true voxels of that shape.
        max_voxels: Maximum number of candidate voxels of a batch at each resolution in training; above it, the decoder
            keeps only the true voxels. No limit applies outside training, where the ground truth is unknown.
        thresholds: Probability at each resolution, finest first, above which a voxel is predicted to exist. A missing
            voxel leaves a hole at all finer resolutions, where a superfluous one can still be removed, so low
            thresholds help if latents are uncertain. None means 0.5 at every resolution.
        cutoff: Fraction of the box above which all predicted voxels of a resolution finer than the latent grid are
            dropped in training, as in the official code. None disables it.
        box: Number of voxels along each axis at resolution 0; needed only by `cutoff`.
        solid: Whether the decoder also predicts which candidates are inside of the shape, and closes the shell with
            them at each resolution. Inside and outside are found on the CPU, in time and memory proportional to the box
            around each shape, about 20 bytes per voxel of it.
        certain: Probability of being inside that, with `solid`, at least one voxel of a connected part must reach;
            other parts are left out (hysteresis thresholding, Canny 1986).
        bridge: Minimum probability of the voxels of a bridge, of being inside with `solid` and of existing without. At
            each resolution, the most probable paths of such candidates connect the parts of a generated shape
            (`geometry/parts.py`, which needs scipy); parts without such a path stay apart. This takes about
            0.1 s for 30,000 candidates on a CPU core. Encoded shapes keep their parts. None disables it.
        normal: Whether normals are an input, and predicted by the decoder.
        intensity: Whether intensities are an input; they are not predicted.
        color: Whether colors are an input, and predicted by the decoder.
        fill: Whether the solid fraction of each voxel is an input, and predicted by the decoder. A finer level can take
            it as a condition, since it locates surfaces within voxels.
        num_labels: Number of semantic classes, as an input and a prediction; 0 for none.
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
    thresholds: tuple[float, ...] | None = None
    cutoff: float | None = None
    box: Triple | None = None
    solid: bool = False
    certain: float = 0.99
    bridge: float | None = None
    normal: bool = True
    intensity: bool = False
    color: bool = False
    fill: bool = False
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
        if len(self.all_strides) != self.num_resolutions - 1 or any(
            len(s) != 3 or min(s) < 1 for s in self.all_strides
        ):
            raise ValueError(
                f"strides must be {self.num_resolutions - 1} triples for {self.num_resolutions} resolutions, "
                f"got {self.strides}"
            )
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
        if len(self.all_thresholds) != self.num_resolutions or not all(0 < t < 1 for t in self.all_thresholds):
            expected = f"{self.num_resolutions} numbers in (0, 1), one per resolution"
            raise ValueError(f"thresholds must be {expected}, got {self.thresholds}")
        if not 0 < self.certain < 1:
            raise ValueError(f"certain must lie in (0, 1), got {self.certain}")
        if self.bridge is not None and not 0 < self.bridge < 1:
            raise ValueError(f"bridge must lie in (0, 1), got {self.bridge}")
        if self.max_voxels is not None and self.max_voxels < 1:
            raise ValueError(f"max_voxels must be positive, got {self.max_voxels}")
        if any(stride != (2, 2, 2) for stride in self.all_strides) and self.dilation != "none":
            raise ValueError(
                f"strides other than (2, 2, 2) need dilation 'none', got {self.strides}, {self.dilation!r}"
            )
        if self.solid and (self.architecture != "modern" or self.num_resolutions < 2):
            given = f"{self.architecture!r} and {self.num_resolutions}"
            raise ValueError(f"solid needs architecture 'modern' and at least two resolutions, got {given}")
        if self.fill and self.architecture != "modern":
            raise ValueError(f"fill needs architecture 'modern', got {self.architecture!r}")
        if self.cutoff is not None and self.architecture != "official":
            raise ValueError(f"cutoff needs architecture 'official', got {self.architecture!r}")
        if self.cutoff is not None and self.box is None:
            raise ValueError("cutoff is a fraction of a box, so it needs box, got None")

    @property
    def num_resolutions(self) -> int:
        """The number of resolutions D."""
        return len(self.channels)

    @property
    def all_strides(self) -> tuple[Triple, ...]:
        """The downsampling factors from resolution 0 to 1, from 1 to 2, and so on: D - 1 triples."""
        return ((2, 2, 2),) * (self.num_resolutions - 1) if self.strides is None else self.strides

    @property
    def all_thresholds(self) -> tuple[float, ...]:
        """The probability above which a voxel is predicted to exist, for resolutions 0 to D - 1."""
        return (0.5,) * self.num_resolutions if self.thresholds is None else self.thresholds

    @property
    def voxel_sizes(self) -> tuple[float, float, float]:
        """The edge lengths of a voxel at resolution 0, one per axis."""
        size = self.voxel_size
        return (size, size, size) if isinstance(size, int | float) else size

    def factor_to(self, resolution: int) -> Triple:
        """The downsampling factor per axis from resolution 0 to `resolution`."""
        x, y, z = (math.prod(stride[axis] for stride in self.all_strides[:resolution]) for axis in range(3))
        return x, y, z

    @property
    def factor(self) -> Triple:
        """The downsampling factor per axis from resolution 0 to the latent grid."""
        return self.factor_to(self.num_resolutions - 1)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the voxel attributes that the encoder takes."""
        takes = {
            "normal": self.normal,
            "intensity": self.intensity,
            "color": self.color,
            "fill": self.fill,
            "label": self.num_labels > 0,
        }
        return tuple(name for name, taken in takes.items() if taken)

    @classmethod
    def official(cls, **changes: Any) -> "VAEConfig":
        """The official network: its layers, early dilation of all grids, and predicted voxels only in training."""
        defaults: dict[str, Any] = {"architecture": "official", "hidden": 32, "dilation": "all", "keep": "predicted"}
        return cls(**(defaults | changes))


@dataclass(frozen=True)
class UNetConfig(Config):
    """Hyperparameters of the denoiser of one level of the cascade, a U-Net.

    Resolution 0 is the latent grid; each further one has voxels of twice the size. The defaults are the modern network;
    `UNetConfig.official` has those of the official one.

    Args:
        latent_channels: Number of channels L of a latent vector.
        architecture: "modern" (average pooling and nearest-neighbor upsampling) or "official" (the layers of the
            official networks: residual blocks that downsample and upsample, which take about half of the runtime).
        dense: Whether to run dense convolutions, for a latent grid that fills a box. They are two to three times as
            fast there as sparse ones, and have the same parameters.
        channels: Number of channels at resolution 0.
        multipliers: Number of channels at each resolution as a multiple of `channels`, finest first.
        blocks: Number of residual blocks at each resolution on the way down, and again on the way up.
        attention: Resolutions with self-attention, given by their downsampling factors: 1, 2, 4, and so on. The
            coarsest resolution always has self-attention, between the two blocks in the middle.
        heads: Number of attention heads.
        groups: Number of groups of GroupNorm; where it does not divide the channels, the greatest common divisor.
        position: Voxel positions as an input: "none"; "ijk", the coordinates; "embedded", the coordinates, their
            sines and cosines; "world", world positions, their sines and cosines.
        normal: Whether the denoiser is conditioned on normals.
        color: Whether the denoiser is conditioned on colors.
        fill: Whether the denoiser is conditioned on the solid fraction of each voxel.
        num_labels: Number of semantic classes of voxels as a condition; 0 for none.
        label_dim: Number of channels of the class embedding.
        extra: Number of channels of any other condition per latent voxel, such as the latents of a coarser level.
        observed: Number of finer voxels in a latent voxel whose states (full, empty or unknown) are a condition, so
            that the denoiser completes partial observations: the number that the VAE decodes from a latent voxel, 64
            for a factor of 4; 0 for none.
        categories: Number of shape categories as a condition; 0 for none.
        text_channels: Number of channels of a text token as a condition; 0 for none.
        words: Number of words of captions as a condition, which a small text encoder in the network reads; 0 for none.
        box: Number of latent voxels of a shape that fill a box, if the text encoder guesses their latents as an input
            of the network; 0 for no guess.
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
    color: bool = False
    fill: bool = False
    num_labels: int = 0
    label_dim: int = 32
    extra: int = 0
    observed: int = 0
    categories: int = 0
    text_channels: int = 0
    words: int = 0
    box: int = 0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        self._check_choices(architecture=get_args(Architecture), position=tuple(POSITION_CHANNELS))
        self._check_at_least(1, "latent_channels", "channels", "blocks", "heads", "groups", "label_dim")
        self._check_at_least(0, "num_labels", "extra", "observed", "categories", "text_channels", "words", "box")
        if self.box and not (self.words and self.dense):
            raise ValueError(f"box must be 0 without words or for a sparse network, got {self.box}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be positive, got {self.multipliers}")
        if any(factor < 1 or factor & (factor - 1) for factor in self.attention):
            raise ValueError(f"attention must hold powers of two, got {self.attention}")
        if self.channels % 2:
            raise ValueError(f"channels must be even, for sines and cosines of the time, got {self.channels}")
        wrong = [width for width in self.attention_widths if width % self.heads]
        if wrong:
            raise ValueError(f"heads must divide the channels of layers with attention, {wrong[0]}, got {self.heads}")

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of channels at each resolution."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def text_everywhere(self) -> bool:
        """Whether every block attends to the text, as in the official sparse network, not only those with attention."""
        return self.architecture == "official" and not self.dense and self.text_channels > 0

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """The number of channels of the layers that attend to voxels or to a text."""
        chosen = (w for n, w in enumerate(self.widths) if self.text_everywhere or 1 << n in self.attention)
        return (*chosen, self.widths[-1])

    @property
    def in_channels(self) -> int:
        """The number of input channels of the first convolution."""
        known = POSITION_CHANNELS[self.position] + 3 * self.normal + 3 * self.color + 2 * self.fill
        known += self.latent_channels if self.box else 0
        return self.latent_channels + known + self.extra + self.observed + (self.label_dim if self.num_labels else 0)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that the network takes."""
        takes = {
            "normal": self.normal,
            "color": self.color,
            "fill": self.fill,
            "label": self.num_labels,
            "extra": self.extra,
            "observed": self.observed,
            "category": self.categories,
            "text": self.text_channels,
            "words": self.words,
        }
        return tuple(name for name, taken in takes.items() if taken)

    @classmethod
    def official(cls, dense: bool, **changes: Any) -> "UNetConfig":
        """The official network: the dense one of the coarse level, or the sparse one of the fine level."""
        defaults: dict[str, Any] = {"architecture": "official", "blocks": 2, "heads": 8, "groups": 32}
        return cls(dense=dense, **(defaults | changes))


@dataclass(frozen=True)
class RefinerConfig(Config):
    """Hyperparameters of the refiner, a U-Net on the decoded voxels and those around them.

    Args:
        voxel_size: Edge length of a voxel in world units.
        channels: Number of channels at each resolution, finest first; the voxel size doubles from each to the next.
        blocks: Number of residual blocks at each resolution on the way down, and again on the way up.
        radius: Maximum distance, in voxels along each axis, of added voxels from decoded ones.
        normal: Whether normals are an input and a prediction.
        num_labels: Number of semantic classes, as an input and a prediction; 0 for none.
        checkpointing: Whether activations are recomputed in the backward pass to save memory.
        threshold: Probability above which a voxel exists. The threshold that maximizes F1 and IoU is half of the
            maximum F1 (Lipton et al. 2014, arXiv:1402.1892): below 0.5, and lower the more voxels are uncertain.
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
