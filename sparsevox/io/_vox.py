"""MagicaVoxel files (.vox): models of up to 256^3 voxels with colors of one palette, placed in a scene.

The format is described at https://github.com/ephtracy/voxel-model. N voxels.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

VERSION = 150
EDGE = 256  # maximum edge of a model
COLORS = 255  # of the palette; index 0 stands for no voxel
REACH = 1 << 20  # maximum absolute coordinate that is read


@dataclass
class _Scene:
    """The chunks of a file.

    sizes: Edges of each model.
    models: Its voxels, uint8 [n, 4]: place in the model and index of the color.
    palette: Colors by index, uint8 [256, 3].
    nodes: The nodes of the scene by their number.
    hidden: Numbers of the layers that are hidden.
    """

    sizes: list[tuple[int, ...]] = field(default_factory=list)
    models: list[Array] = field(default_factory=list)
    palette: Array = field(default_factory=lambda: default_palette())
    nodes: dict[int, "_Node"] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Node:
    """A node of the scene: children, or models, with a rotation and a translation."""

    children: tuple[int, ...] = ()
    models: tuple[int, ...] = ()
    rotation: Array = field(default_factory=lambda: np.eye(3, dtype=np.int64))
    translation: Array = field(default_factory=lambda: np.zeros(3, np.int64))
    layer: int = -1
    hidden: bool = False


class _Reader:
    """Reads numbers, texts and dictionaries from bytes; raises ValueError at their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.place

    def take(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise ValueError(f"the file is damaged: {size} bytes must follow, got {self.left}")
        self.place += size
        return self.data[self.place - size : self.place]

    def numbers(self, count: int) -> tuple[int, ...]:
        data = self.take(4 * count)
        return struct.unpack(f"<{count}i", data)

    def number(self) -> int:
        return self.numbers(1)[0]

    def table(self) -> dict[str, str]:
        return {self.text(): self.text() for _ in range(self.number())}

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "replace")


def read_vox(data: bytes) -> tuple[Array, Array]:
    """Read all models of a file at their places in the scene.

    Models and layers that are hidden are left out. Where models overlap, the first one counts. Of an animated model,
    the first frame is read. A file without a scene that holds several models is a batch of them.

    Returns:
        Coordinates (batch, i, j, k), int64 [N, 4], and colors, uint8 [N, 3].

    Raises:
        ValueError: If the file is damaged.
    """
    scene = _parse(data)
    placed = list(_placed(scene))
    coords = np.concatenate([np.zeros((0, 4), np.int64), *(place for place, _ in placed)])
    index = np.concatenate([np.zeros(0, np.int64), *(color for _, color in placed)])
    if len(coords) and abs(coords).max() > REACH:
        raise ValueError(f"coordinates must lie within {REACH}, got {abs(coords).max()}")
    if (index == 0).any():
        raise ValueError("the file is damaged: a voxel has the color 0, which stands for no voxel")
    _, first = np.unique(coords, axis=0, return_index=True)
    first.sort()
    return coords[first], scene.palette[index[first]]


def default_palette() -> Array:
    """The colors of a file without a palette, by index: uint8 [256, 3]."""
    cube = [(r, g, b) for r, g, b in product(range(255, -1, -51), repeat=3)][:-1]
    ramp = [value for value in range(0xEE, 0, -0x11) if value % 0x33]
    ramps = [
        tuple(value * (axis in axes) for axis in range(3)) for axes in ((0,), (1,), (2,), (0, 1, 2)) for value in ramp
    ]
    return np.array([(0, 0, 0), *cube, *ramps], np.uint8)


def _parse(data: bytes) -> _Scene:
    reader, scene = _Reader(data), _Scene()
    if reader.take(4) != b"VOX ":
        raise ValueError("the file must begin with 'VOX '")
    reader.number()  # the version: all have the same chunks
    if reader.take(4) != b"MAIN":
        raise ValueError("the file is damaged: it has no MAIN chunk")
    own, children = reader.numbers(2)
    reader.take(own)
    chunks = _Reader(reader.take(children))
    while chunks.left:
        name, (size, inner) = chunks.take(4), chunks.numbers(2)
        _read_chunk(name, _Reader(chunks.take(size)), scene)
        chunks.take(inner)
    if len(scene.sizes) != len(scene.models):
        raise ValueError(f"the file is damaged: {len(scene.sizes)} sizes of {len(scene.models)} models")
    return scene


def _read_chunk(name: bytes, chunk: _Reader, scene: _Scene) -> None:
    """Add a chunk to the scene; those of materials, cameras and the like have no effect."""
    if name == b"SIZE":
        scene.sizes.append(chunk.numbers(3))
    elif name == b"XYZI":
        voxels = np.frombuffer(chunk.take(4 * chunk.number()), np.uint8).reshape(-1, 4)
        scene.models.append(voxels)
    elif name == b"RGBA":
        colors = np.frombuffer(chunk.take(4 * 256), np.uint8).reshape(-1, 4)[:, :3]
        scene.palette = np.roll(colors, 1, axis=0)  # the file begins with the color of index 1
    elif name == b"LAYR":
        number, table = chunk.number(), chunk.table()
        if table.get("_hidden") == "1":
            scene.hidden.add(number)
    elif name in (b"nTRN", b"nGRP", b"nSHP"):
        number, table = chunk.number(), chunk.table()
        if number in scene.nodes:
            raise ValueError(f"the file is damaged: node {number} occurs twice")
        scene.nodes[number] = _node(name, chunk, table)


def _node(name: bytes, chunk: _Reader, table: Mapping[str, str]) -> _Node:
    if name == b"nGRP":
        return _Node(children=chunk.numbers(chunk.number()))
    if name == b"nSHP":
        models = []
        for _ in range(chunk.number()):
            models.append(chunk.number())
            chunk.table()
        return _Node(models=tuple(models[:1]))  # the others are later frames
    child, _, layer, frames = chunk.numbers(4)
    frame = chunk.table() if frames > 0 else {}
    return _Node(
        children=(child,),
        rotation=_rotation(_integer(frame.get("_r", "4"))),
        translation=np.array([_integer(word) for word in frame.get("_t", "0 0 0").split()], np.int64),
        layer=layer,
        hidden=table.get("_hidden") == "1",
    )


def _integer(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"the file is damaged: {text!r} is no integer") from None
    if abs(value) > REACH:
        raise ValueError(f"coordinates must lie within {REACH}, got {value}")
    return value


def _rotation(code: int) -> Array:
    """The matrix of a rotation or reflection that maps axes to axes: int64 [3, 3].

    Two bits each name the column of the entry of the first and the second row, and one bit each is set for a negative
    entry of the three rows.
    """
    columns = [code & 3, code >> 2 & 3]
    columns.append(3 - sum(columns))
    if sorted(columns) != [0, 1, 2] or not 0 <= code < 128:
        raise ValueError(f"the file is damaged: {code} is no rotation")
    matrix = np.zeros((3, 3), np.int64)
    for row, column in enumerate(columns):
        matrix[row, column] = -1 if code >> (4 + row) & 1 else 1
    return matrix


def _placed(scene: _Scene) -> Iterator[tuple[Array, Array]]:
    """Coordinates (batch, i, j, k) and color indices of the voxels of each model in the scene."""
    if not scene.nodes:
        for number, voxels in enumerate(scene.models):
            yield np.insert(voxels[:, :3].astype(np.int64), 0, number, axis=1), voxels[:, 3]
        return
    inner = {child for node in scene.nodes.values() for child in node.children}
    todo = [(number, np.eye(3, dtype=np.int64), np.zeros(3, np.int64)) for number in scene.nodes if number not in inner]
    if not todo:
        raise ValueError("the file is damaged: the scene has no root")
    visits = 0
    while todo:
        number, rotation, translation = todo.pop(0)
        visits += 1
        if number not in scene.nodes or visits > 100_000:
            what = f"there is no node {number}" if number not in scene.nodes else "the scene has no end"
            raise ValueError(f"the file is damaged: {what}")
        node = scene.nodes[number]
        if node.hidden or node.layer in scene.hidden:
            continue
        if len(node.translation) != 3:
            raise ValueError(f"the file is damaged: a translation has {len(node.translation)} numbers")
        translation = translation + rotation @ node.translation
        rotation = rotation @ node.rotation
        for model in node.models:
            if not 0 <= model < len(scene.models):
                raise ValueError(f"the file is damaged: there is no model {model}")
            voxels, size = scene.models[model], np.array(scene.sizes[model])
            # A model turns about its center, rounded down to a corner of a voxel; twice the centers of voxels are odd.
            double = 2 * (voxels[:, :3].astype(np.int64) - size // 2) + 1
            place = (double @ rotation.T + 2 * translation - 1) // 2
            yield np.insert(place, 0, 0, axis=1), voxels[:, 3]
        todo[:0] = [(child, rotation, translation) for child in node.children]


def write_vox(ijk: Array, color: Array) -> bytes:
    """Make the content of a file: a scene of models whose coordinates there are `ijk`.

    A palette has 255 colors. If there are more, each channel is rounded to as many bits as give at most 255.

    Args:
        ijk: Coordinates, integers [N, 3]; voxels are distinct.
        color: Colors, uint8 [N, 3].
    """
    # 1. The palette.
    for bits in range(8, 0, -1):
        levels = 2**bits - 1
        rounded = (np.rint(color / 255 * levels) / levels * 255).round().astype(np.uint8)
        found, index = np.unique(rounded, axis=0, return_inverse=True)
        if len(found) <= COLORS:
            break
    palette = np.zeros((256, 4), np.uint8)
    palette[: len(found), :3], palette[: len(found), 3] = found, 255
    # 2. Models of at most 256^3 voxels, and a node of the scene for each.
    ijk = ijk.astype(np.int64)
    start = ijk.min(0) if len(ijk) else 0
    corners, model = np.unique((ijk - start) // EDGE, axis=0, return_inverse=True)
    chunks, nodes, groups = [], [], []
    for number in range(len(corners)):
        rows = np.flatnonzero(model.reshape(-1) == number)
        low = ijk[rows].min(0)
        size = ijk[rows].max(0) - low + 1
        voxels = np.concatenate([ijk[rows] - low, index.reshape(-1)[rows, None] + 1], 1).astype(np.uint8)
        chunks.append(_chunk(b"SIZE", struct.pack("<3i", *size)))
        chunks.append(_chunk(b"XYZI", struct.pack("<i", len(rows)) + voxels.tobytes()))
        place, shape = 2 * number + 2, 2 * number + 3
        groups.append(place)
        nodes.append(_transform(place, shape, low + size // 2))
        nodes.append(_chunk(b"nSHP", struct.pack("<5i", shape, 0, 1, number, 0)))
    root = [_transform(0, 1, None), _chunk(b"nGRP", struct.pack(f"<{3 + len(groups)}i", 1, 0, len(groups), *groups))]
    inner = b"".join([*chunks, *root, *nodes, _chunk(b"RGBA", palette.tobytes())])
    return b"VOX " + struct.pack("<i", VERSION) + b"MAIN" + struct.pack("<2i", 0, len(inner)) + inner


def _transform(number: int, child: int, translation: Array | None) -> bytes:
    words = {} if translation is None else {"_t": " ".join(map(str, translation.tolist()))}
    table = struct.pack("<i", len(words)) + b"".join(_text(word) for pair in words.items() for word in pair)
    return _chunk(b"nTRN", struct.pack("<6i", number, 0, child, -1, 0, 1) + table)


def _text(text: str) -> bytes:
    return struct.pack("<i", len(text)) + text.encode()


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<2i", len(content), 0) + content
