"""Meshes, point clouds, and voxels with attributes: the shapes that `sparsevox.io` reads and writes.

An attribute is a tensor with one row per vertex, face, point or voxel. Some names have a fixed meaning:

- "normal": floats [., 3], unit vectors that point away from the surface
- "color": floats [., 3], red, green and blue in [0, 1]
- "label": integers [.], a semantic class or a part
- "intensity": floats [., 1], of a LiDAR return
- "density": floats [., 1], the number of points in a voxel

V vertices, F faces, P points, N voxels, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.grid import Grid
from sparsevox.tensor import SparseTensor

Attributes = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh. It need not be closed, oriented or connected.

    Args:
        vertices: World positions, floating-point [V, 3].
        faces: Indices into `vertices`, integers [F, 3].
        vertex_attributes: Tensors [V] or [V, C] by name.
        face_attributes: Tensors [F] or [F, C] by name.

    Raises:
        TypeError: If `vertices` is not floating-point, `faces` is not integer, or an attribute is not a tensor.
        ValueError: If a shape or device does not match, or a face refers to a vertex that does not exist.
    """

    vertices: Tensor
    faces: Tensor
    vertex_attributes: Attributes = field(default_factory=dict)
    face_attributes: Attributes = field(default_factory=dict)

    def __post_init__(self) -> None:
        vertices = checks.floats("vertices", checks.shape("vertices", self.vertices, "V", 3))
        faces = checks.integers("faces", checks.shape("faces", self.faces, "F", 3))
        checks.same_device("faces", faces, "vertices", vertices.device)
        if faces.numel() and not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
            bad = int(((faces < 0) | (faces >= len(vertices))).any(1).int().argmax())
            raise ValueError(
                f"faces must hold indices of {len(vertices)} vertices, got faces[{bad}] = {faces[bad].tolist()}"
            )
        _check_attributes("vertex_attributes", self.vertex_attributes, len(vertices), vertices.device)
        _check_attributes("face_attributes", self.face_attributes, len(faces), vertices.device)

    @property
    def device(self) -> torch.device:
        """Device of all tensors of the mesh."""
        return self.vertices.device

    @property
    def bounds(self) -> Tensor:
        """Lower and upper corner of the bounding box of all vertices, [2, 3]. Raises ValueError if there are none."""
        return _bounds(self.vertices)

    def to(self, device: torch.device | str) -> Self:
        """Return the mesh on another device."""
        return replace(
            self,
            vertices=self.vertices.to(device),
            faces=self.faces.to(device),
            vertex_attributes=_moved(self.vertex_attributes, device),
            face_attributes=_moved(self.face_attributes, device),
        )

    def transform(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to the positions, [V, 3] to [V, 3]. Attributes do not change, not even normals."""
        return replace(self, vertices=function(self.vertices))

    def __repr__(self) -> str:
        names = ", ".join([*self.vertex_attributes, *self.face_attributes]) or "none"
        return f"Mesh(V={len(self.vertices):,}, F={len(self.faces):,}, attributes: {names}, {self.device})"


@dataclass(frozen=True, eq=False)
class Points:
    """A point cloud.

    Args:
        positions: World positions, floating-point [P, 3].
        attributes: Tensors [P] or [P, C] by name.

    Raises:
        TypeError: If `positions` is not floating-point, or an attribute is not a tensor.
        ValueError: If a shape or device does not match.
    """

    positions: Tensor
    attributes: Attributes = field(default_factory=dict)

    def __post_init__(self) -> None:
        positions = checks.floats("positions", checks.shape("positions", self.positions, "P", 3))
        _check_attributes("attributes", self.attributes, len(positions), positions.device)

    @property
    def device(self) -> torch.device:
        """Device of positions and attributes."""
        return self.positions.device

    @property
    def bounds(self) -> Tensor:
        """Lower and upper corner of the bounding box, [2, 3]. Raises ValueError if there are no points."""
        return _bounds(self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Select points, with their attributes, by indices, a bool mask [P] or a slice."""
        return replace(
            self, positions=self.positions[rows], attributes={k: v[rows] for k, v in self.attributes.items()}
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the points on another device."""
        return replace(self, positions=self.positions.to(device), attributes=_moved(self.attributes, device))

    def transform(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to the positions, [P, 3] to [P, 3]. Attributes do not change, not even normals."""
        return replace(self, positions=function(self.positions))

    def __repr__(self) -> str:
        return f"Points(P={len(self):,}, attributes: {', '.join(self.attributes) or 'none'}, {self.device})"


@dataclass(frozen=True, eq=False)
class Voxels:
    """A batch of grids with named attributes, in the row order of the grid.

    Networks take a `SparseTensor`, with a single matrix of floats: `voxels.tensor("normal", "color")` makes one.

    Args:
        grid: The voxels, of one or several batch items.
        attributes: Tensors [N] or [N, C] by name.

    Raises:
        TypeError: If `grid` is not a Grid or an attribute is not a tensor.
        ValueError: If a shape or device does not match.
    """

    grid: Grid
    attributes: Attributes = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.grid, Grid):
            raise TypeError(f"grid must be a sparsevox.Grid, got {type(self.grid).__name__}")
        _check_attributes("attributes", self.attributes, self.grid.num_voxels, self.grid.device)

    @property
    def device(self) -> torch.device:
        """Device of grid and attributes."""
        return self.grid.device

    @property
    def num_voxels(self) -> int:
        """Number of voxels N of the whole batch."""
        return self.grid.num_voxels

    @property
    def batch_size(self) -> int:
        """Number of grids B in the batch."""
        return self.grid.batch_size

    def __len__(self) -> int:
        return self.batch_size

    def tensor(self, *names: str) -> SparseTensor:
        """Concatenate the named attributes along the channels, in the order of the names.

        Integers become float32.

        Returns:
            Features [N, C] on the grid, where C is the total number of channels of the attributes.

        Raises:
            KeyError: If no name is given, or there is no attribute with a given name.
        """
        missing = [name for name in names if name not in self.attributes]
        if missing or not names:
            raise KeyError(f"names must be among {sorted(self.attributes)}, got {list(names)}")
        values = [as_columns(self.attributes[name]) for name in names]
        return SparseTensor(self.grid, torch.cat([v if v.is_floating_point() else v.float() for v in values], 1))

    def with_attributes(self, **attributes: Tensor) -> Self:
        """Return the same voxels with attributes added or replaced."""
        return replace(self, attributes={**self.attributes, **attributes})

    def prune(self, mask: Tensor) -> Self:
        """Keep the voxels where `mask`, bool [N], is True, with their attributes."""
        grid = self.grid.prune(mask)
        return replace(self, grid=grid, attributes={k: v[mask] for k, v in self.attributes.items()})

    def unbind(self) -> list[Self]:
        """Split the batch into a list of its items."""
        grids = list(self.grid)
        sizes = [grid.num_voxels for grid in grids]
        parts = {name: value.split(sizes) for name, value in self.attributes.items()}
        return [replace(self, grid=g, attributes={k: v[i] for k, v in parts.items()}) for i, g in enumerate(grids)]

    @classmethod
    def stack(cls, items: Sequence[Self]) -> Self:
        """Concatenate batches, in order, into one batch.

        Raises:
            ValueError: If there are no items, or their attributes or transforms differ.
        """
        if not items:
            raise ValueError("items must hold at least one Voxels, got none")
        names = list(items[0].attributes)
        for index, item in enumerate(items):
            if set(item.attributes) != set(names):
                raise ValueError(
                    f"items must have the same attributes, got {sorted(names)} in items[0] and "
                    f"{sorted(item.attributes)} in items[{index}]"
                )
            for name in names:
                first, other = (list(each.attributes[name].shape) for each in (items[0], item))
                if first[1:] != other[1:]:
                    raise ValueError(
                        f"attributes[{name!r}] must have the same channels in all items, got {first} in items[0] and "
                        f"{other} in items[{index}]"
                    )
        grid = Grid.stack([item.grid for item in items])
        return cls(grid, {name: torch.cat([item.attributes[name] for item in items]) for name in names})

    def to(self, device: torch.device | str) -> Self:
        """Return the voxels on another device."""
        return replace(self, grid=self.grid.to(device), attributes=_moved(self.attributes, device))

    def __repr__(self) -> str:
        return f"Voxels(attributes: {', '.join(self.attributes) or 'none'}, {self.grid!r})"


Shape = Mesh | Points | Voxels


def as_columns(attribute: Tensor) -> Tensor:
    """View an attribute [.] or [., C] as [., C]."""
    return attribute[:, None] if attribute.ndim == 1 else attribute


def _bounds(positions: Tensor) -> Tensor:
    if not len(positions):
        raise ValueError("bounds need at least one position, got an empty shape")
    return torch.stack([positions.amin(0), positions.amax(0)])


def _moved(attributes: Attributes, device: torch.device | str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in attributes.items()}


def _check_attributes(argument: str, attributes: Attributes, rows: int, device: torch.device) -> None:
    for name, value in attributes.items():
        checked = checks.tensor(f"{argument}[{name!r}]", value)
        if checked.ndim not in (1, 2) or checked.shape[0] != rows:
            raise ValueError(f"{argument}[{name!r}] must have shape [{rows}] or [{rows}, C], got {list(checked.shape)}")
        checks.same_device(f"{argument}[{name!r}]", checked, "the shape", device)
