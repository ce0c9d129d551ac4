"""Shapes whose y axis points up, as in most OBJ and all glTF files, turned so that z points up."""

from dataclasses import replace
from typing import Literal

from sparsevox.shapes import Attributes, Points, Shape, Voxels

Up = Literal["y", "z"]


def upright(shape: Shape, up: Up) -> Shape:
    """Rotate a shape so that its z axis points up.

    With "y", the y axis becomes z, z becomes x, and x becomes y: a model whose front faces along z, as glTF
    requires, then faces along x, like procedural shapes. Positions and "normal" are rotated exactly. With "z" the shape
    is returned unchanged.

    Raises:
        ValueError: If `up` is "y" and the shape consists of voxels.
    """
    if up == "z":
        return shape
    if isinstance(shape, Voxels):
        raise ValueError("up must be 'z' for voxels")
    rotated = shape.transform(lambda positions: positions.roll(1, 1))
    if isinstance(rotated, Points):
        return replace(rotated, attributes=_rotated(rotated.attributes))
    return replace(
        rotated,
        vertex_attributes=_rotated(rotated.vertex_attributes),
        face_attributes=_rotated(rotated.face_attributes),
    )


def _rotated(attributes: Attributes) -> Attributes:
    return {name: value.roll(1, 1) if name == "normal" else value for name, value in attributes.items()}
