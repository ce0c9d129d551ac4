"""Voxels painted in MagicaVoxel as shapes to edit and upsample, and as parts of edits."""

import json
from pathlib import Path

import pytest
import torch

from sparsevox import Grid, Voxels
from sparsevox.io import load_voxels, save_voxels
from xcube.cli import main
from xcube.data.hierarchy import Box
from xcube.data.painted import load_painted
from xcube.geometry.solids import solid, surface

pytest.importorskip("scipy", reason="finds the inside")

BOX = Box((16, 64))


def painted(path: Path, *corners: tuple[int, int]) -> Path:
    """A file of cubes in the corners of its scene: their lower and upper ends, exclusive, on all axes."""
    whole = Grid.full([corners[0][0]] * 3, [corners[0][1]] * 3)
    for low, high in corners[1:]:
        whole = whole | Grid.full([low] * 3, [high] * 3)
    save_voxels(Voxels(whole), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main([*map(str, words), "--quiet"])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_painted_solid_or_shell_is_a_shell_with_normals(tmp_path: Path) -> None:
    filled = load_painted(painted(tmp_path / "cube.vox", (-5, 4)), BOX, 1)
    shell = surface(solid(filled.grid))
    assert filled.grid.same_voxels(shell)
    assert filled.num_voxels == 9**3 - 7**3
    assert (filled.grid.voxel_size, filled.grid.origin) == ((1 / 64,) * 3, (1 / 128,) * 3)
    ijk, normal = filled.grid.ijk, filled.attributes["normal"]
    middle = (ijk[:, 0] == 3) & ((ijk[:, 1:] + 1).abs() < 2).all(1)  # of the face at the upper end of x
    assert int(middle.sum()) == 9
    torch.testing.assert_close(normal[middle], torch.tensor([[1.0, 0, 0]]).expand(9, 3), atol=0.02, rtol=0)
    save_voxels(Voxels(Grid.from_coords(shell.coords)), tmp_path / "shell.vox")
    again = load_painted(tmp_path / "shell.vox", BOX, 1)
    assert again.grid.same_voxels(filled.grid)
    assert torch.equal(again.attributes["normal"], normal)
    coarse = load_painted(tmp_path / "cube.vox", BOX, 0)
    assert coarse.grid.voxel_size == (1 / 16,) * 3


def test_painted_voxels_outside_of_the_box_are_refused(tmp_path: Path) -> None:
    path = painted(tmp_path / "cube.vox", (30, 33))
    with pytest.raises(ValueError, match=r"cube\.vox must hold voxels in a box of \(64, 64, 64\) around the origin"):
        load_painted(path, BOX, 1)
    assert load_painted(painted(path, (-32, -30), (30, 32)), BOX, 1).num_voxels == 16  # the whole box
    save_voxels(Voxels(Grid.empty(1)), path)
    with pytest.raises(ValueError, match=r"cube\.vox must hold one shape, got 1 of 0 voxels"):
        load_painted(path, BOX, 1)


def test_commands_take_painted_voxels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("jsonargparse", "matplotlib"):
        pytest.importorskip(package, reason="the command line")
    cube, corner = painted(tmp_path / "cube.vox", (-12, 12)), painted(tmp_path / "corner.vox", (8, 16))
    out = tmp_path / "edited"
    code, text = run(capsys, "edit", cube, "--add", corner, "--delete", "z=:-0.1", "--out", out)
    assert (code, text.splitlines()[0]) == (0, "1 shapes generated")
    made = solid(load_voxels(out / "shape-000000.npz").grid)
    ijk = made.ijk
    assert int(ijk.max()) in (15, 16)  # the corner was added, with one voxel of the margin at most
    assert int(ijk[:, 2].min()) >= -8
    assert set(json.loads((out / "settings.json").read_text())["files"]) == {str(cube), str(corner)}

    coarse, out = painted(tmp_path / "coarse.vox", (-4, 3)), tmp_path / "finer"
    code, text = run(capsys, "upsample", coarse, "--out", out)
    assert (code, text.splitlines()[0]) == (0, "1 shapes generated")
    finer = load_voxels(out / "shape-000000.npz")
    assert finer.grid.voxel_size == (1 / 64,) * 3
    assert -18 <= int(finer.grid.ijk.min()) < int(finer.grid.ijk.max()) <= 14  # within the coarse voxels, nearly full
    assert int(finer.grid.ijk.max() - finer.grid.ijk.min()) > 20

    for command in ("edit", "upsample"):
        code, text = run(capsys, command, cube, "--up", "y", "--out", tmp_path / "no")
        assert code == 2
        assert "up must be 'z' for voxels, got 'y'" in text
    assert not (tmp_path / "no").exists()
