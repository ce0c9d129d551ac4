"""A viewer that a server drives, so that shapes stay on the machine that made them: `pip install 'sparsevox[viewer]'`.

R rows: exposed voxels, vertices or points.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsevox import checks
from sparsevox.viz import colors
from sparsevox.viz.coding import BUILT_IN, Coding, codings, first_color
from sparsevox.viz.scene import Floats, Level, Shapes, bounds, gallery
from sparsevox.viz.sides import quads

if TYPE_CHECKING:
    import viser

NODE = "/shape"
GAMMA = 2.2  # colors of boxes and meshes are amounts of light to viser, not numbers of a screen


class Controls(NamedTuple):
    """What the page lets people change, and what it tells them: handles of viser."""

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
    """Start a viewer, made by viser, and return it. Open `http://HOST:PORT` in a browser.

    Args:
        shapes: As `show_html` takes them.
        host: Which of the addresses of this machine to listen at. By default only browsers on this machine see it;
            "0.0.0.0" is for all who can reach it.
        port: Where to listen; where it is taken, viser takes the next free one.
        title: Of the page.
        attributes: Names of those to choose from; None takes all.
        color: What to color by at first, as `show_html` takes it.

    Returns:
        The server. It runs in threads of its own: `server.get_port()` tells the port, `server.sleep_forever()` waits,
        `server.stop()` ends it.

    Raises:
        ImportError: If viser is not installed.
        TypeError: If something is no shape, or the port no int.
        ValueError: As `show_html`, or if the port is out of range.
    """
    if not 1 <= checks.integer("port", port) <= 65535:
        raise ValueError(f"port must be between 1 and 65535, got {port}")
    items = gallery(shapes, attributes)
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
    server: "viser.ViserServer", items: Mapping[str, list[Level]], coded: Mapping[str, Coding], first: str
) -> Controls:
    """Put controls into the page, which draw what they choose, and draw for the first time."""
    names, most = list(items), max(map(len, items.values())) - 1
    options = list(dict.fromkeys([*BUILT_IN, *coded]))
    shape = server.gui.add_dropdown("shape", names, initial_value=names[0], visible=len(names) > 1)
    level = server.gui.add_slider("level", 0, max(most, 1), 1, most, visible=most > 0)
    color = server.gui.add_dropdown("color", options, initial_value=first)
    text = server.gui.add_markdown("")
    one_at_a_time = threading.Lock()  # viser answers each change in a thread of its own

    def draw(_: Any = None) -> None:
        with one_at_a_time:
            levels = items[shape.value]
            number = min(int(level.value), len(levels) - 1)
            text.content = f"level {number}: {levels[number].text}"
            _draw(server, levels, number, paint(levels, number, color.value, coded))

    for control in (shape, level, color):
        control.on_update(draw)
    draw()
    return Controls(shape, level, color, text)


def paint(levels: Sequence[Level], number: int, color: str, coded: Mapping[str, Coding]) -> NDArray[np.uint8]:
    """Red, green and blue [R, 3] of the rows of a level; what has no attribute of that name is plain."""
    level = levels[number]
    if color in level.columns:
        return coded[color].paint(level.columns[color])
    if color == "height" and color not in coded:
        low, high = bounds(levels)[:, 2]
        at = (level.origin[2] + level.size[2] * level.places[:, 2] - low) / (high - low or 1.0)
        return np.rint(255 * colors.ramp(colors.HEIGHT, at)).astype(np.uint8)
    plain = colors.class_color(number) if color == "level" and color not in coded else colors.PLAIN
    return np.repeat(colors.rgb_bytes([plain]), len(level.places), 0)


def _draw(server: "viser.ViserServer", levels: Sequence[Level], number: int, rgb: NDArray[np.uint8]) -> None:
    """Put a level in place of what is there, in a ball of radius 1 around the origin."""
    level = levels[number]
    corners = bounds(levels)
    scale = 2 / (float(np.linalg.norm(corners[1] - corners[0])) or 2.0)
    at: Floats = (level.origin - corners.mean(0) + level.size * level.places[:, :3]) * scale
    linear = np.rint(255 * (rgb / 255) ** GAMMA).astype(np.uint8)
    if level.kind == "mesh" and level.faces is not None and len(level.faces):
        import trimesh  # which comes with viser

        mesh = trimesh.Trimesh(at, level.faces, vertex_colors=linear, process=False)
        server.scene.add_mesh_trimesh(NODE, mesh)
    elif level.kind == "voxels" and len(at):
        box = quads().reshape(-1, 3) * level.size * scale
        faces = np.array([(0, 1, 2), (0, 2, 3)]) + 4 * np.arange(6)[:, None, None]
        upright = np.tile(np.array([1, 0, 0, 0], np.float32), (len(at), 1))
        server.scene.add_batched_meshes_simple(
            *(NODE, box.astype(np.float32), faces.reshape(-1, 3).astype(np.uint32), upright, at.astype(np.float32)),
            batched_colors=linear,
            lod="off",
            flat_shading=True,
            side="double",
        )
    else:
        server.scene.add_point_cloud(NODE, at.astype(np.float32), rgb, point_size=0.008, precision="float32")
