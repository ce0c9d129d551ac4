"""Pages that compare two shapes, as a browser shows them."""

import numpy as np
import pytest
import torch

from sparsevox import Grid, Voxels
from sparsevox.viz import show_html
from tests.test_viz_html import ONE, fraction, picture


def test_a_browser_compares_two_shapes(tmp_path) -> None:
    """The other one is on the left of the line, from the same point of view."""
    grid = Grid.full(0, (8, 8, 1))
    red, green = (
        Voxels(grid, {"color": torch.tensor(color).expand(grid.num_voxels, 3)}) for color in ([1.0, 0, 0], [0.0, 1, 0])
    )
    path = tmp_path / "page.html"
    show_html({"before": red, "after": green, "none": ONE}, path, against=("after", "before"))
    for split, more in ((0.5, None), (0.3, True), (0.7, False)):
        shown, said = picture(path, f"color=color&view=0,89.9&split={split}")
        _, left = np.nonzero(np.abs(shown - (255, 0, 0)).max(2) <= 1)
        _, right = np.nonzero(np.abs(shown - (0, 255, 0)).max(2) <= 1)
        assert left.max() < right.min()
        assert left.max() == pytest.approx(500 * split, abs=30)
        if more is None:
            assert len(left) == pytest.approx(len(right), rel=0.1)
        else:
            assert (len(left) < len(right)) == more
        assert not said
    shown, _ = picture(path, "shape=before&against=&color=color&view=0,89.9")
    assert fraction(shown, (0, 255, 0)) == 0 < fraction(shown, (255, 0, 0))
    with pytest.raises(ValueError, match=r"against must name shapes among \['a', 'b'\], got 'c'"):
        show_html({"a": ONE, "b": ONE}, tmp_path / "no.html", against=("a", "c"))
    assert not (tmp_path / "no.html").exists()
