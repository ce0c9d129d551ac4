"""What `describe` counts on a mesh, against edges counted one at a time, and real meshes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Mesh
from sparsevox.io import MeshInfo, describe, load_mesh, save_mesh

# Whether they are closed and edge-manifold.
REAL = dict.fromkeys(("bottle", "bowl", "key"), (True, True)) | {"chair": (False, True), "shelf": (True, False)}

# A tetrahedron, faces outwards.
CORNERS = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.5)]
FACES = [(0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2)]


def facts_of(corners: list[Any], faces: list[Any]) -> tuple[int, ...]:
    """Counted one edge at a time, with dictionaries of positions."""
    sides: dict[Any, list[bool]] = {}
    proper = [[tuple(corners[i]) for i in face] for face in faces]
    proper = [face for face in proper if len(set(face)) == 3]
    for face in proper:
        for start, end in zip(face, face[1:] + face[:1], strict=True):
            sides.setdefault(frozenset((start, end)), []).append(start < end)
    boundary = sum(len(s) == 1 for s in sides.values())
    crowded = sum(len(s) > 2 for s in sides.values())
    flipped = sum(len(s) == 2 and s[0] == s[1] for s in sides.values())
    used = {tuple(corners[i]) for face in faces for i in face}
    return len(used), len(proper), len(faces) - len(proper), boundary, crowded, flipped


@given(st.lists(st.tuples(*[st.integers(0, 7)] * 3), max_size=14))
def test_counts_match_dictionaries(faces):
    corners = [(float(n >> 2 & 1), float(n >> 1 & 1), float(n & 1)) for n in range(7)] + [(0.0, 0.0, -0.0)]
    mesh = Mesh(torch.tensor(corners), torch.tensor(faces, dtype=torch.int64).reshape(-1, 3))
    found = describe(mesh)
    assert tuple(found) == facts_of(corners, faces)
    assert found.closed == (found.faces > 0 and found.boundary_edges == 0)


def described(faces: list[Any], corners: list[Any] = CORNERS) -> MeshInfo:
    return describe(Mesh(torch.tensor(corners), torch.tensor(faces)))


def test_closed_open_crowded_and_flipped():
    whole = described(FACES)
    assert (whole.closed, whole.edge_manifold, whole.oriented) == (True, True, True)
    soup = [CORNERS[corner] for face in FACES for corner in face]  # three vertices for every triangle
    assert described([(3 * n, 3 * n + 1, 3 * n + 2) for n in range(4)], soup) == whole
    assert not described(FACES[:3]).closed
    flipped = described([FACES[0][::-1], *FACES[1:]])
    assert (flipped.closed, flipped.edge_manifold, flipped.oriented) == (True, True, False)
    doubled = described([*FACES, FACES[0]])
    assert (doubled.closed, doubled.edge_manifold, doubled.oriented) == (True, False, False)


def test_an_empty_mesh():
    nothing = describe(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)))
    assert tuple(nothing) == (0,) * 6
    assert not nothing.closed


# Meshes of the world


@pytest.mark.parametrize("name", REAL)
def test_real_meshes(name, tmp_path):
    pytest.importorskip("PIL", reason="texture coordinates need Pillow")
    path = Path(__file__).parent / "meshes" / f"{name}.obj"
    lines = [line.split() for line in path.read_text().splitlines()]
    (tmp_path / "plain.obj").write_text("\n".join(" ".join(words) for words in lines if words[0] in "vf"))
    mesh, plain = load_mesh(path), load_mesh(tmp_path / "plain.obj")
    assert len(mesh.faces) == sum(len(words) - 3 for words in lines if words[:1] == ["f"])
    corners = np.array([words[1:4] for words in lines if words[:1] == ["v"]], np.float64)
    assert np.array_equal(plain.vertices.numpy(), corners)
    assert torch.equal(mesh.vertices[mesh.faces], plain.vertices[plain.faces])  # texture coordinates repeat vertices
    info = describe(mesh)
    assert (info.closed, info.edge_manifold) == REAL[name]
    save_mesh(mesh, tmp_path / "a.ply")
    back = load_mesh(tmp_path / "a.ply")
    assert torch.equal(back.vertices, mesh.vertices.float().double())
    assert torch.equal(back.faces, mesh.faces)
