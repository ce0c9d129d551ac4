"""A viewer in the browser for shapes on a remote machine, served by viser: `pip install 'sparsevox[viewer]'`.

R rows (exposed voxels, vertices or points).
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsevox import checks
from sparsevox.viz import colors
from sparsevox.viz.coding import BUILT_IN, Coding, codings, first_color
from sparsevox.viz.scene import Floats, SceneLevel, Shapes, bounds, scene_levels
from sparsevox.viz.sides import quads

if TYPE_CHECKING:
    import viser

NODE = "/shape"
GAMMA = 2.2  # viser takes linear colors for boxes and meshes, but sRGB colors for points


class Controls(NamedTuple):
    """Controls of the page, as handles of viser."""

    shape: Any
    level: Any
    color: Any
    text: Any


def serve(
    shapes: Shapes,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    title: str | None = None,
    attributes: Sequence[str] | None = None,
    color: str | None = None,
) -> "viser.ViserServer":
    """Start a viser server that shows shapes in a browser at `http://HOST:PORT`.

    Args:
        shapes: Shapes, as in `show_html`.
        host: Address to listen on. By default only browsers on this machine can connect; "0.0.0.0" accepts connections
            from everywhere.
        port: Port to listen on. If it is in use, viser takes the next free one.
        title: Title of the page. By default "sparsevox".
        attributes: Names of the attributes to include. None includes all.
        color: Initial color, as in `show_html`.

    Returns:
        The server, which runs in the background: `server.get_port()` returns the port, `server.sleep_forever()` blocks,
        `server.stop()` stops it.

    Raises:
        ImportError: If viser is not installed.
        TypeError: If `shapes` holds anything but shapes, or `port` is not an int.
        ValueError: As in `show_html`, or if `port` is out of range.
    """
    if not 1 <= checks.integer("port", port) <= 65535:
        raise ValueError(f"port must be between 1 and 65535, got {port}")
    items = scene_levels(shapes, attributes)
    levels = [level for item in items.values() for level in item]
    coded = codings(levels)
    first = first_color(color, levels, coded)
    try:
        import viser
    except ImportError as error:
        raise ImportError("the viewer needs viser: pip install 'sparsevox[viewer]'") from error
    server = viser.ViserServer(host=host, port=port, label=title or "sparsevox", verbose=False)
    server.scene.set_up_direction("+z")
    server.initial_camera.position = (1.9, 1.3, 1.3)
    add_controls(server, items, coded, first)
    return server


def add_controls(
    server: "viser.ViserServer", items: Mapping[str, list[SceneLevel]], coded: Mapping[str, Coding], first: str
) -> Controls:
    """Add the controls, redraw when one of them changes, and draw for the first time."""
    names, most = list(items), max(map(len, items.values())) - 1
    options = list(dict.fromkeys([*BUILT_IN, *coded]))
    shape = server.gui.add_dropdown("shape", names, initial_value=names[0], visible=len(names) > 1)
    level = server.gui.add_slider("level", 0, max(most, 1), 1, most, visible=most > 0)
    color = server.gui.add_dropdown("color", options, initial_value=first)
    text = server.gui.add_markdown("")
    lock = threading.Lock()  # viser handles each change in its own thread

    def draw(_: Any = None) -> None:
        with lock:
            levels = items[shape.value]
            number = min(int(level.value), len(levels) - 1)
            text.content = f"level {number}: {levels[number].text}"
            _draw(server, levels, number, paint(levels, number, color.value, coded))

    for control in (shape, level, color):
        control.on_update(draw)
    draw()
    return Controls(shape, level, color, text)


def paint(levels: Sequence[SceneLevel], number: int, color: str, coded: Mapping[str, Coding]) -> NDArray[np.uint8]:
    """Compute the colors of the rows of a level, RGB bytes [R, 3]. Levels without the attribute are plain."""
    level = levels[number]
    if color in level.columns:
        return coded[color].paint(level.columns[color])
    if color == "height" and color not in coded:
        low, high = bounds(levels)[:, 2]
        height = (level.origin[2] + level.size[2] * level.places[:, 2] - low) / (high - low or 1.0)
        return np.rint(255 * colors.ramp(colors.HEIGHT, height)).astype(np.uint8)
    plain = colors.class_color(number) if color == "level" and color not in coded else colors.PLAIN
    return np.repeat(colors.rgb_bytes([plain]), len(level.places), 0)


def _draw(server: "viser.ViserServer", levels: Sequence[SceneLevel], number: int, rgb: NDArray[np.uint8]) -> None:
    """Replace the drawn level. It is scaled to a ball of radius 1 around the origin."""
    level = levels[number]
    corners = bounds(levels)
    scale = 2 / (float(np.linalg.norm(corners[1] - corners[0])) or 2.0)
    positions: Floats = (level.origin - corners.mean(0) + level.size * level.places[:, :3]) * scale
    linear = np.rint(255 * (rgb / 255) ** GAMMA).astype(np.uint8)
    if level.kind == "mesh" and level.faces is not None and len(level.faces):
        import trimesh  # a dependency of viser

        mesh = trimesh.Trimesh(positions, level.faces, vertex_colors=linear, process=False)
        server.scene.add_mesh_trimesh(NODE, mesh)
    elif level.kind == "voxels" and len(positions):
        box = (quads().reshape(-1, 3) * level.size * scale).astype(np.float32)  # [24, 3]
        faces = np.array([(0, 1, 2), (0, 2, 3)]) + 4 * np.arange(6)[:, None, None]  # [6, 2, 3]
        identity = np.tile(np.array([1, 0, 0, 0], np.float32), (len(positions), 1))  # quaternions
        server.scene.add_batched_meshes_simple(
            *(NODE, box, faces.reshape(-1, 3).astype(np.uint32), identity, positions.astype(np.float32)),
            batched_colors=linear,
            lod="off",
            flat_shading=True,
            side="double",
        )
    else:
        server.scene.add_point_cloud(NODE, positions.astype(np.float32), rgb, point_size=0.008, precision="float32")
