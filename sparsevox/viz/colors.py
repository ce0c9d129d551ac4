"""Colors of heights, scalars and classes, as hexadecimal strings as in HTML, or floats in [0, 1].

A palette has at most 256 entries, so that a value takes one byte.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# From low to high.
HEIGHT = (0x2B3F78, 0x2F7FA6, 0x4FB8A3, 0xBFE08E, 0xFFE08A, 0xFFB36B)
# Viridis of matplotlib (CC0): perceptually uniform, also in grayscale and for color-blind readers.
VIRIDIS = (
    *(0x440154, 0x481A6C, 0x472F7D, 0x414487, 0x39568C, 0x31688E, 0x2A788E, 0x23888E),
    *(0x1F988B, 0x22A884, 0x35B779, 0x54C568, 0x7AD151, 0xA5DB36, 0xD2E21B, 0xFDE725),
)
PLAIN = "#c9ced6"  # no attribute
UNKNOWN = "#808080"  # not finite

STEPS = 255  # number of colors of a ramp: bytes 0 to 254; byte 255 is UNKNOWN
GOLDEN = (5**0.5 - 1) / 2

Floats = NDArray[np.float64]


def ramp(stops: Sequence[int], at: Floats) -> Floats:
    """Interpolate colors [., 3] at positions [.] in [0, 1] between equally spaced stops."""
    rgb = np.array([[stop >> 16, stop >> 8 & 255, stop & 255] for stop in stops]) / 255
    return np.stack([np.interp(at * (len(stops) - 1), range(len(stops)), channel) for channel in rgb.T], 1)


def ramp_palette(stops: Sequence[int]) -> list[str]:
    """List the 256 colors of a ramp by byte."""
    return [*map(_hex, ramp(stops, np.linspace(0, 1, STEPS)).tolist()), UNKNOWN]


def class_color(value: int) -> str:
    """Choose the color of a class, the same in every picture. Classes with close values get distinct colors."""
    # Steps of the golden ratio stay away from all previous hues; lightness distinguishes hues that come close later.
    lightness, saturation = ((0.55, 0.65), (0.38, 0.55), (0.72, 0.75))[value % 3]
    return _hex(colorsys.hls_to_rgb((0.58 + value * GOLDEN) % 1, lightness, saturation))


def rgb_bytes(palette: Sequence[str]) -> NDArray[np.uint8]:
    """Convert a palette to RGB bytes [., 3]."""
    return np.frombuffer(bytes.fromhex("".join(color[1:] for color in palette)), np.uint8).reshape(-1, 3)


def _hex(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in rgb)
