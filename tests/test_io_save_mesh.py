"""Writing meshes, and reading them back with `load_mesh`, which has its own tests."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from sparsevox import Mesh
from sparsevox.io import from_trimesh, load_mesh, save_mesh, to_trimesh

# A tetrahedron, faces outwards.
CORNERS = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.5)]
FACES = [(0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2)]


def triangles(mesh: Mesh) -> Counter[Any]:
    """Each triangle by its corners, the smallest first, in the sense in which it runs around."""
    made: Counter[Any] = Counter()
    for face in mesh.vertices[mesh.faces].tolist():
        corners = [tuple(corner) for corner in face]
        first = corners.index(min(corners))
        made[tuple(corners[first:] + corners[:first])] += 1
    return made


EXPECTED = triangles(Mesh(torch.tensor(CORNERS), torch.tensor(FACES)))


def decorated() -> Mesh:
    rng = np.random.default_rng(0)
    color = torch.from_numpy(rng.integers(0, 256, (4, 3)) / 255).float()
    vertex = {
        "color": color,
        "normal": torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(4, 3))).float(), dim=1),
        "label": torch.tensor([3, -1, 2**31 - 1, 0]),
        "weights": torch.from_numpy(rng.random((4, 5))),
        "half": torch.tensor([0.5, 1, -2, 4]).bfloat16(),
        "seen": torch.tensor([True, False, True, True]),
    }
    return Mesh(torch.tensor(CORNERS), torch.tensor(FACES), vertex, {"part": torch.arange(4, dtype=torch.int16)})


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl", "off", "glb"])
def test_saved_meshes_are_loaded_unchanged(tmp_path, suffix):
    mesh, path = decorated(), tmp_path / f"a.{suffix}"
    save_mesh(mesh, path)
    back = load_mesh(path)
    assert triangles(back) == EXPECTED
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix != "stl":
        assert back.vertices.tolist() == mesh.vertices.tolist()
        assert back.faces.tolist() == mesh.faces.tolist()
    if suffix in ("obj", "ply", "glb"):
        assert torch.allclose(back.vertex_attributes["color"], mesh.vertex_attributes["color"], atol=1e-6, rtol=0)
    else:
        assert not back.vertex_attributes


def test_a_ply_file_stores_every_attribute(tmp_path):
    mesh = decorated()
    save_mesh(mesh, tmp_path / "a.ply")
    back = load_mesh(tmp_path / "a.ply")
    dtypes = {"label": torch.int32, "weights": torch.float64, "half": torch.float32, "seen": torch.uint8}
    assert back.vertex_attributes.keys() == mesh.vertex_attributes.keys()
    for name, dtype in dtypes.items():
        assert back.vertex_attributes[name].dtype == dtype
        assert torch.equal(back.vertex_attributes[name], mesh.vertex_attributes[name].to(dtype))
    assert torch.equal(back.vertex_attributes["normal"], mesh.vertex_attributes["normal"])
    assert torch.equal(back.face_attributes["part"], mesh.face_attributes["part"])
    head = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode()
    assert "property int label" in head
    assert "property short part" in head


def test_colors_of_faces(tmp_path):
    color = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    mesh = Mesh(torch.tensor(CORNERS), torch.tensor(FACES), {}, {"color": color})
    save_mesh(mesh, tmp_path / "a.ply")
    assert torch.equal(load_mesh(tmp_path / "a.ply").face_attributes["color"], color)
    save_mesh(mesh, tmp_path / "a.glb")
    averaged = load_mesh(tmp_path / "a.glb").vertex_attributes["color"]
    around = [[f for f, face in enumerate(FACES) if v in face] for v in range(4)]
    assert torch.allclose(averaged, torch.stack([color[f].mean(0) for f in around]), atol=1.01 / 255)
    both = Mesh(mesh.vertices, mesh.faces, {"color": color.flip(0)}, {"color": color})
    assert torch.equal(from_trimesh(to_trimesh(both)).vertex_attributes["color"], color.flip(0))


def test_attributes_that_a_ply_file_cannot_store(tmp_path):
    def attempt(name: str, value: torch.Tensor) -> None:
        save_mesh(Mesh(torch.tensor(CORNERS), torch.tensor(FACES), {name: value}), tmp_path / "a.ply")

    for name in ("two words", "", "$x", "red", "x", "vertex_indices", "rgba"):
        with pytest.raises(ValueError, match="attribute names"):
            attempt(name, torch.zeros(4))
    with pytest.raises(ValueError, match="must fit in 32 bits, got larger ones in attribute 'big'"):
        attempt("big", torch.tensor([2**31, 0, 0, 0]))
    with pytest.raises(ValueError, match="1 to 255 channels, got 256 for 'wide'"):
        attempt("wide", torch.zeros(4, 256))
    with pytest.raises(ValueError, match="must not be complex, got complex64 for 'c'"):
        attempt("c", torch.zeros(4, dtype=torch.complex64))
    assert not list(tmp_path.iterdir())


def test_invalid_meshes_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="mesh must have faces"):
        save_mesh(Mesh(torch.tensor(CORNERS), torch.zeros(0, 3, dtype=torch.int64)), tmp_path / "a.ply")
    with pytest.raises(ValueError, match=r"mesh\.vertices must be finite"):
        save_mesh(Mesh(torch.tensor(CORNERS) / 0, torch.tensor(FACES)), tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, mesh = tmp_path / "a.ply", decorated()
    save_mesh(mesh, path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_mesh(Mesh(mesh.vertices * 2, mesh.faces), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
