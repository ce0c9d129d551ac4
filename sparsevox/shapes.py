"""What comes in and goes out: meshes, point clouds, and voxels with attributes.

An attribute is a tensor with one row for each vertex, face, point or voxel. Names that ops know:

- "normal": floats [., 3], unit length, out of the surface
- "color": floats [., 3], red, green and blue in [0, 1]
- "label": integers [.], a semantic class or a part
- "intensity": floats [., 1], of a LiDAR return
- "density": floats [., 1], how many points fell into a voxel

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
    """Triangles. They need not be closed, oriented or connected.

    vertices: World positions, floating point [V, 3].
    faces: Rows of vertices, integers [F, 3].
    vertex_attributes: By name, a row for each vertex.
    face_attributes: By name, a row for each face.

    Raises:
        TypeError: If vertices are not floating-point, faces not integers, or an attribute is no tensor.
        ValueError: If shapes, rows or devices do not fit, or a face points past the vertices.
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
                f"faces must hold rows of {len(vertices)} vertices, got faces[{bad}] = {faces[bad].tolist()}"
            )
        _check_attributes("vertex_attributes", self.vertex_attributes, len(vertices), vertices.device)
        _check_attributes("face_attributes", self.face_attributes, len(faces), vertices.device)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.vertices.device

    @property
    def bounds(self) -> Tensor:
        """Lowest and highest corner: [2, 3]. A ValueError if there is nothing."""
        return _bounds(self.vertices)

    def to(self, device: torch.device | str) -> Self:
        """On another device."""
        return replace(
            self,
            vertices=self.vertices.to(device),
            faces=self.faces.to(device),
            vertex_attributes=_moved(self.vertex_attributes, device),
            face_attributes=_moved(self.face_attributes, device),
        )

    def transform(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Moved or scaled by a function of the positions [., 3]. Attributes stay as they are, normals too."""
        return replace(self, vertices=function(self.vertices))

    def __repr__(self) -> str:
        names = ", ".join([*self.vertex_attributes, *self.face_attributes]) or "none"
        return f"Mesh(V={len(self.vertices):,}, F={len(self.faces):,}, attributes: {names}, {self.device})"


@dataclass(frozen=True, eq=False)
class Points:
    """A point cloud.

    positions: World positions, floating point [P, 3].
    attributes: By name, a row for each point.

    Raises:
        TypeError: If positions are not floating-point, or an attribute is no tensor.
        ValueError: If shapes, rows or devices do not fit.
    """

    positions: Tensor
    attributes: Attributes = field(default_factory=dict)

    def __post_init__(self) -> None:
        positions = checks.floats("positions", checks.shape("positions", self.positions, "P", 3))
        _check_attributes("attributes", self.attributes, len(positions), positions.device)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.positions.device

    @property
    def bounds(self) -> Tensor:
        """Lowest and highest corner: [2, 3]. A ValueError if there is nothing."""
        return _bounds(self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """The points that an index or a mask selects."""
        return replace(
            self, positions=self.positions[rows], attributes={k: v[rows] for k, v in self.attributes.items()}
        )

    def to(self, device: torch.device | str) -> Self:
        """On another device."""
        return replace(self, positions=self.positions.to(device), attributes=_moved(self.attributes, device))

    def transform(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Moved or scaled by a function of the positions [., 3]. Attributes stay as they are, normals too."""
        return replace(self, positions=function(self.positions))

    def __repr__(self) -> str:
        return f"Points(P={len(self):,}, attributes: {', '.join(self.attributes) or 'none'}, {self.device})"


@dataclass(frozen=True, eq=False)
class Voxels:
    """A batch of grids with named attributes, rows in the order of the grid.

    `SparseTensor` is what networks pass on, one matrix of floats; `voxels.tensor("normal", "color")` makes one.

    grid: Which voxels exist.
    attributes: By name, a row for each voxel.

    Raises:
        TypeError: If `grid` is no Grid or an attribute no tensor.
        ValueError: If rows or devices do not fit.
    """

    grid: Grid
    attributes: Attributes = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.grid, Grid):
            raise TypeError(f"grid must be a sparsevox.Grid, got {type(self.grid).__name__}")
        _check_attributes("attributes", self.attributes, self.grid.num_voxels, self.grid.device)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.grid.device

    @property
    def num_voxels(self) -> int:
        """N."""
        return self.grid.num_voxels

    @property
    def batch_size(self) -> int:
        """B."""
        return self.grid.batch_size

    def __len__(self) -> int:
        return self.batch_size

    def tensor(self, *names: str) -> SparseTensor:
        """The named attributes as the channels of one tensor, in the order of the names; integers become float32.

        Raises:
            KeyError: If there is no such attribute.
        """
        missing = [name for name in names if name not in self.attributes]
        if missing or not names:
            raise KeyError(f"names must be among {sorted(self.attributes)}, got {list(names)}")
        values = [as_columns(self.attributes[name]) for name in names]
        return SparseTensor(self.grid, torch.cat([v if v.is_floating_point() else v.float() for v in values], 1))

    def with_attributes(self, **attributes: Tensor) -> Self:
        """The same voxels with more attributes, or others in place of those it had."""
        return replace(self, attributes={**self.attributes, **attributes})

    def prune(self, mask: Tensor) -> Self:
        """The voxels whose row of `mask`, bool [N], is True, with their attributes."""
        grid = self.grid.prune(mask)
        return replace(self, grid=grid, attributes={k: v[mask] for k, v in self.attributes.items()})

    def unbind(self) -> list[Self]:
        """One for each batch item."""
        grids = list(self.grid)
        sizes = [grid.num_voxels for grid in grids]
        parts = {name: value.split(sizes) for name, value in self.attributes.items()}
        return [replace(self, grid=g, attributes={k: v[i] for k, v in parts.items()}) for i, g in enumerate(grids)]

    @classmethod
    def stack(cls, items: Sequence[Self]) -> Self:
        """One batch of all of them, in order.

        Raises:
            ValueError: If there are none, or their attributes or transforms differ.
        """
        if not items:
            raise ValueError("items must hold one Voxels at least, got none")
        names = list(items[0].attributes)
        for index, item in enumerate(items):
            if set(item.attributes) != set(names):
                raise ValueError(
                    f"items must have the same attributes, got {sorted(names)} in items[0] and "
                    f"{sorted(item.attributes)} in items[{index}]"
                )
            for name in names:
                first, other = (list(each.attributes[name].shape[1:]) for each in (items[0], item))
                if first != other:
                    raise ValueError(
                        f"attributes[{name!r}] must have one shape, got [N, *{first}] in items[0] and [N, *{other}] in "
                        f"items[{index}]"
                    )
        grid = Grid.stack([item.grid for item in items])
        return cls(grid, {name: torch.cat([item.attributes[name] for item in items]) for name in names})

    def to(self, device: torch.device | str) -> Self:
        """On another device."""
        return replace(self, grid=self.grid.to(device), attributes=_moved(self.attributes, device))

    def __repr__(self) -> str:
        return f"Voxels(attributes: {', '.join(self.attributes) or 'none'}, {self.grid!r})"


Shape = Mesh | Points | Voxels


def as_columns(attribute: Tensor) -> Tensor:
    """An attribute [.] or [., C] as [., C]."""
    return attribute[:, None] if attribute.ndim == 1 else attribute


def _bounds(positions: Tensor) -> Tensor:
    if not len(positions):
        raise ValueError("an empty shape has no bounds")
    return torch.stack([positions.amin(0), positions.amax(0)])


def _moved(attributes: Attributes, device: torch.device | str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in attributes.items()}


def _check_attributes(argument: str, attributes: Attributes, rows: int, device: torch.device) -> None:
    for name, value in attributes.items():
        checked = checks.tensor(f"{argument}[{name!r}]", value)
        if checked.ndim not in (1, 2) or checked.shape[0] != rows:
            raise ValueError(f"{argument}[{name!r}] must have shape [{rows}] or [{rows}, C], got {list(checked.shape)}")
        checks.same_device(f"{argument}[{name!r}]", checked, "the shape", device)
