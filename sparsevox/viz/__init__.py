"""Visualization: `render_png` and `render_row` draw images, `show_html` writes HTML pages, `serve` starts a viewer."""

from sparsevox.viz.html import show_html
from sparsevox.viz.png import MARGIN, render_png, render_row
from sparsevox.viz.serve import serve
from sparsevox.viz.sides import DIRECTIONS, TAPS, exposed_faces

__all__ = ["DIRECTIONS", "MARGIN", "TAPS", "exposed_faces", "render_png", "render_row", "serve", "show_html"]
