"""The viewer: the colors that it receives against the formulas, and the server, if viser is installed."""

import socket
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from sparsevox import Grid, Mesh, Points, Voxels
from sparsevox.viz import serve
from sparsevox.viz.coding import codings
from sparsevox.viz.scene import Shown, scene_levels
from sparsevox.viz.serve import add_controls, paint

COLUMN = Grid.full(0, (1, 1, 5))
ATTRIBUTES = {
    "color": torch.tensor([[n / 4, 0.0, 1.0] for n in range(5)]),
    "label": torch.tensor([3, 3, 9, 9, 3]),
    "density": torch.tensor([0.0, 1, 2, 3, 4]),
}


def test_colors() -> None:
    levels = scene_levels([Grid.full(0, 1), Voxels(COLUMN, ATTRIBUTES)], None)[""]
    coded = codings(levels)
    assert paint(levels, 1, "color", coded).tolist() == [[round(255 * n / 4), 0, 255] for n in range(5)]
    label = paint(levels, 1, "label", coded)
    assert (label == label[[0, 0, 2, 2, 0]]).all()
    assert (label[0] != label[2]).any()
    assert paint(levels, 1, "density", coded)[[0, 4]].tolist() == [[0x44, 0x01, 0x54], [0xFD, 0xE7, 0x25]]
    # The world reaches from -0.5 to 4.5, so the ends of the ramp are half a voxel outside the centers.
    height = paint(levels, 1, "height", coded)
    stops = np.array([[0x2B, 0x3F, 0x78], [0x2F, 0x7F, 0xA6]])
    assert np.abs(height[0] - stops.mean(0)).max() <= 1
    assert len(np.unique(paint(levels, 1, "plain", coded), axis=0)) == 1
    assert (paint(levels, 0, "density", coded) == paint(levels, 0, "plain", coded)).all()
    assert (paint(levels, 0, "level", coded)[0] != paint(levels, 1, "level", coded)[0]).any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"port": 0}, ValueError, "port must be between 1 and 65535, got 0"),
        ({"port": "8080"}, TypeError, "port must be an int, got '8080'"),
        ({"color": "normal"}, ValueError, r"color must be among \['height', 'level', 'plain'\], got 'normal'"),
        ({"attributes": ["normal"]}, ValueError, r"attributes must be among \[\], got 'normal'"),
    ],
)
def test_bad_arguments(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        serve(COLUMN, **arguments)


def test_without_viser_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(ImportError, match=r"pip install 'sparsevox\[viewer\]'"):
        serve(COLUMN)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_server_serves_a_page_and_stops() -> None:
    pytest.importorskip("viser", reason="needs the extra viewer")
    server = serve(COLUMN, port=free_port(), title="A title")
    address = f"http://127.0.0.1:{server.get_port()}"
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert b"<!doctype html>" in answer.read().lower()
    finally:
        server.stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=2)


def test_controls_change_what_is_drawn(monkeypatch) -> None:
    """Every kind of shape is drawn as a kind of node, when a control chooses it."""
    viser = pytest.importorskip("viser", reason="needs the extra viewer")
    corners = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 4]])
    mesh = Mesh(corners, torch.tensor([[0, 1, 2]]), {"color": torch.eye(3)})
    levels: list[Shown] = [COLUMN.coarsen(2), Voxels(COLUMN, ATTRIBUTES), mesh, Points(corners)]
    items = scene_levels({"all": levels, "nothing": Grid.empty()}, None)
    server = viser.ViserServer(host="127.0.0.1", port=free_port(), verbose=False)
    drawn = []
    for kind in ("batched_meshes_simple", "mesh_trimesh", "point_cloud"):
        add = getattr(server.scene, f"add_{kind}")
        monkeypatch.setattr(server.scene, f"add_{kind}", lambda *a, add=add, **k: drawn.append(add(*a, **k)))
    try:
        controls = add_controls(server, items, codings(items["all"]), "height")
        assert [type(node).__name__ for node in drawn] == ["PointCloudHandle"]

        def after(handle, value) -> str:
            """The kind of node that is there once a control has changed; viser answers in a thread of its own."""
            count, handle.value = len(drawn), value
            for _ in range(500):
                if len(drawn) > count:
                    break
                time.sleep(0.01)
            return type(drawn[-1]).__name__

        assert after(controls.level, 2) == "GlbHandle"
        assert after(controls.level, 1) == "BatchedMeshHandle"
        assert drawn[-1].batched_positions.shape == (5, 3)
        height = drawn[-1].batched_colors.copy()
        assert after(controls.color, "density") == "BatchedMeshHandle"
        assert (drawn[-1].batched_colors != height).any()
        assert "5 voxels in 1 x 1 x 5" in controls.text.content
        assert after(controls.shape, "nothing") == "PointCloudHandle"
        assert len(drawn[-1].points) == 0
    finally:
        server.stop()
