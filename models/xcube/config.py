"""Hyper-parameters of the networks: plain dataclasses that become JSON and YAML."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

Triple = tuple[int, int, int]
T = TypeVar("T", bound="Config")


@dataclass(frozen=True)
class Config:
    """What all configurations have in common."""

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any]) -> T:
        """The inverse of `to_dict`. Fields left out keep their defaults.

        Raises:
            ValueError: If there is an unknown field.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        hints = get_type_hints(cls)
        return cls(**{name: _typed(value, hints[name]) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _typed(value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, dict):
        return hint.from_dict(value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class VAEConfig(Config):
    """The sparse structure VAE of one level of the cascade. Depth 0 is its finest grid, depth D - 1 its latent grid.

    The defaults are the `modern` network; `VAEConfig.paper` has those of the released ones.

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
    def paper(cls, **changes: Any) -> "VAEConfig":
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
