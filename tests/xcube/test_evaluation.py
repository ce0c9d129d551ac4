"""Folders of shapes against a dataset, from Python and from the command line."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import Grid, Voxels
from sparsevox.io import save_mesh, save_voxels, to_mesh
from xcube.cli import main
from xcube.commands.evaluate import table
from xcube.data import Box, ShapeFolder, Source, build
from xcube.data.hierarchy import build_hierarchy
from xcube.evaluation.evaluate import Metrics, evaluate_folder, evaluate_shapes
from xcube.evaluation.load import NamedShape, level_of, read_samples
from xcube.evaluation.novelty import coarsest_grid, nearest_training
from xcube.geometry.distances import chamfer, shape_points

pytest.importorskip("scipy", reason="search trees and graphs")
pytest.importorskip("trimesh", reason="the library of meshes")

BOX = Box((4, 16))
TRAIN, TEST = 10, 6


def ball(number: int) -> Voxels:
    """A shell whose size and shape depend on a number, in the box."""
    axis = torch.arange(-6, 6)
    ijk = torch.cartesian_prod(axis, axis, axis)
    flat = torch.tensor([1.0, 1.0 + 0.06 * number, 1.0])
    ijk = ijk[(((ijk + 0.5) * flat).square().sum(1).sqrt() - 4.5).abs() < 0.9]
    grid = Grid.from_coords(ijk, voxel_size=1 / 16, origin=1 / 32)
    return Voxels(grid, {"normal": torch.nn.functional.normalize((grid.ijk + 0.5) * flat.square(), dim=1)})


def nothing(voxels: Voxels) -> Voxels:
    return voxels.prune(torch.zeros(voxels.num_voxels, dtype=torch.bool))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Even numbers to train with, some of the odd ones to test."""
    out = tmp_path_factory.mktemp("balls")
    sources = [Source(f"{n:02}", partial(ball, n), split="train") for n in range(0, 2 * TRAIN, 2)]
    sources += [Source(f"{n:02}", partial(ball, n), split="test") for n in range(1, 2 * TEST, 2)]
    assert len(build(sources, out, BOX).built) == TRAIN + TEST
    return out


def items(data: Path, split: str) -> list[NamedShape]:
    shapes = ShapeFolder(data, split)
    return [NamedShape(entry.name, shapes[n]) for n, entry in enumerate(shapes.entries)]


def written(folder: Path, shapes: dict[str, Voxels]) -> Path:
    for name, voxels in shapes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_voxels(voxels, folder / f"{name}.npz")
    return folder


# From Python


def test_copies_of_held_out_shapes(data: Path) -> None:
    found = evaluate_shapes(items(data, "test")[::-1], data, emd=True, points=256)
    row = found.rows["samples"]
    assert row["shapes"] == TEST
    for prefix in ("", "emd_"):
        copied = (row[prefix + "one_nna"], row[prefix + "coverage"], row[prefix + "mmd"])
        assert copied == (0, 1, 0)
        assert row[prefix + "one_nna_error"] == 0.5 / math.sqrt(2 * TEST)
    assert row["normal_consistency"] == pytest.approx(1)
    assert (row["valid"], row["one_component"], row["watertight"], row["empty"]) == (1, 1, 1, 0)
    assert row["open_edges"] == 0
    reference = found.rows["training"]
    assert reference["mmd"] > 0
    assert reference["one_nna"] > 0
    assert "one_nna" not in found.rows["held_out"]
    assert "nearest_iou" not in reference
    assert [found.rows["held_out"][k] for k in row if "nearest" in k] == [row[k] for k in row if "nearest" in k]


def test_copies_of_training_shapes_are_found(data: Path) -> None:
    learned = items(data, "train")
    shapes = [
        NamedShape("copy", learned[3].voxels),
        NamedShape("new", ball(21)),
        NamedShape("nothing", nothing(ball(1))),
    ]
    found = evaluate_shapes(shapes, data, points=512)
    copy, new, empty = found.samples
    assert copy["name"] == "copy"
    assert (copy["nearest_iou"], copy["nearest_chamfer"]) == (1, 0)
    assert copy["nearest_chamfer_shape"] == learned[3].name
    assert new["nearest_chamfer"] > 0
    assert new["nearest_chamfer_shape"] == learned[-1].name
    assert (empty["nearest_iou"], empty["nearest_chamfer"], empty["valid"]) == (0, math.inf, False)
    row = found.rows["samples"]
    assert (row["nearest_chamfer_min"], row["nearest_iou_max"], row["empty"]) == (0, 1, 1)
    assert found.rows["held_out"]["nearest_chamfer_min"] > 0
    assert row["nearest_chamfer"] == pytest.approx(new["nearest_chamfer"] / 2)
    assert row["valid"] == pytest.approx(2 / 3)


def test_what_is_nearest_is_so_by_all_distances(data: Path) -> None:
    """The Chamfer distance, of all voxels, is the smallest of those to the eight that share most."""
    learned = items(data, "train")
    own = ball(13)
    (found,) = nearest_training([NamedShape("a", own)], data, points=400)
    places = shape_points(own, 400).positions
    distances = {item.name: chamfer(places, shape_points(item.voxels, 400).positions) for item in learned}
    assert found.nearest_chamfer == min(distances.values())
    assert distances[found.nearest_chamfer_shape] == found.nearest_chamfer
    mine = {tuple(v) for v in build_hierarchy(own, BOX)[0].grid.ijk.tolist()}
    coarse = {
        n: {tuple(v) for v in build_hierarchy(item.voxels, BOX)[0].grid.ijk.tolist()} for n, item in enumerate(learned)
    }
    shares = {learned[n].name: len(mine & other) / len(mine | other) for n, other in coarse.items()}
    assert found.nearest_iou == max(shares.values())
    assert shares[found.nearest_iou_shape] == found.nearest_iou


def test_only_empty_samples_are_as_bad_as_can_be(data: Path, tmp_path: Path) -> None:
    bare = Voxels(Grid.empty(voxel_size=1 / 16, origin=1 / 32))
    found = evaluate_shapes(
        [NamedShape("bare", bare), *(NamedShape(str(n), nothing(ball(1))) for n in range(2))], data, points=64, emd=True
    )
    row = found.rows["samples"]
    assert (row["one_nna"], row["coverage"], row["mmd"], row["valid"], row["empty"]) == (1, 0, math.inf, 0, 3)
    assert row["normal_consistency"] == 0
    found.save(tmp_path / "evaluation.json")
    read = json.loads((tmp_path / "evaluation.json").read_text())
    assert read["rows"]["samples"]["mmd"] is None
    assert read["samples"][0]["nearest_chamfer"] is None
    assert read["rows"]["training"]["mmd"] == found.rows["training"]["mmd"]


def test_other_shapes_are_told_apart(data: Path) -> None:
    flat = Grid.full((-5, -1, -5), (5, 0, 5), voxel_size=1 / 16, origin=1 / 32)
    up = torch.tensor([[0.0, 1.0, 0.0]]).repeat(flat.num_voxels, 1)
    found = evaluate_shapes([NamedShape(str(n), Voxels(flat, {"normal": up})) for n in range(TEST)], data, points=256)
    assert found.rows["samples"]["one_nna"] == 1
    assert found.rows["samples"]["coverage"] == 1 / TEST
    assert found.rows["samples"]["mmd"] > found.rows["training"]["mmd"]
    assert found.rows["samples"]["watertight"] == 0
    assert found.rows["samples"]["open_edges"] > 0


def test_shapes_without_normals_are_compared_without(data: Path) -> None:
    shapes = [NamedShape(str(n), Voxels(ball(n).grid)) for n in range(1, 9, 2)]
    found = evaluate_shapes(shapes, data, on="surface", points=100)
    assert all("normal_consistency" in row for row in found.rows.values() if "mmd" in row)  # those of the surfaces
    found = evaluate_shapes(shapes, data, points=100)
    assert not any("normal_consistency" in row for row in found.rows.values())
    assert found.rows["samples"]["watertight"] == found.rows["training"]["watertight"] == 1


def test_equal_seeds_give_equal_figures(data: Path) -> None:
    def metrics_of(seed: int) -> Any:
        found = evaluate_shapes(items(data, "test"), data, count=3, points=64, seed=seed)
        return found.rows, found.samples

    assert metrics_of(0) == metrics_of(0)
    assert metrics_of(0) != metrics_of(1)


def test_the_coarsest_level_is_that_of_datasets(data: Path) -> None:
    fine, coarse = (ShapeFolder(data, "train", level=level)[4] for level in (1, 0))
    assert coarsest_grid(fine.grid, BOX, 1).same_voxels(coarse.grid)
    assert coarsest_grid(coarse.grid, BOX, 0) is coarse.grid
    assert level_of(coarse.grid, BOX) == 0
    at_coarse = evaluate_shapes(
        [NamedShape(str(n), ShapeFolder(data, "train", level=0)[n]) for n in range(2)], data, level=0, points=64
    )
    assert at_coarse.rows["samples"]["nearest_iou"] == 1
    assert at_coarse.settings["resolution"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "train"}, "split must be one that no network was trained on, got 'train'"),
        ({"split": "dev"}, "split must be one of"),
        ({"count": 1}, "count must be at least 2, got 1"),
        ({"on": "edges"}, "on must be 'voxels' or 'surface', got 'edges'"),
        ({"points": 0}, "points must be at least 1, got 0"),
    ],
)
def test_bad_options_are_named(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_shapes(items(data, "test"), data, **changes)
    with pytest.raises(ValueError, match=message):
        evaluate_folder(data, data, **changes)


def test_what_cannot_be_compared_is_an_error(data: Path, tmp_path: Path) -> None:
    found = f"got 1 samples, {TEST} of 'test' and {TRAIN} of 'train'"
    with pytest.raises(ValueError, match=f"each set must hold at least 2 shapes, {found}"):
        evaluate_shapes(items(data, "test")[:1], data)
    with pytest.raises(ValueError, match=r"samples must have voxels of size 0\.25, got \(0\.0625, .* in '01'"):
        evaluate_shapes(items(data, "test"), data, level=0)
    with pytest.raises(IndexError, match="level must be an index of the levels"):
        evaluate_shapes(items(data, "test"), data, level=2)
    with pytest.raises(FileNotFoundError, match="is not a dataset"):
        evaluate_shapes(items(data, "test"), tmp_path)


# Files


def test_samples_are_found_by_their_voxel_size(data: Path, tmp_path: Path) -> None:
    fine = ball(1)
    coarse = Voxels(build_hierarchy(fine, BOX)[0].grid)
    folder = written(tmp_path, {"b/16": fine, "b/4": coarse, "a": nothing(fine), ".old": fine})
    save_voxels(Voxels.stack([fine, ball(3)]), folder / "c.npz", half=True)
    (folder / "notes.txt").write_text("not a shape")
    save_mesh(to_mesh(fine), folder / "b" / "mesh.glb")
    found = read_samples(folder, BOX, -1)
    assert [item.name for item in found] == ["a", "b/16", "c[0]", "c[1]"]
    assert [item.voxels.num_voxels for item in found] == [0, fine.num_voxels, fine.num_voxels, ball(3).num_voxels]
    assert found[2].voxels.attributes["normal"].dtype == torch.float32
    assert [item.name for item in read_samples(folder, BOX, 0)] == ["b/4"]
    assert len(read_samples(data, BOX, 1)) == TRAIN + TEST  # a dataset is a folder of shapes


def test_meshes_are_cut_into_voxels(tmp_path: Path) -> None:
    save_mesh(to_mesh(ball(1)), tmp_path / "a.glb")
    (item,) = read_samples(tmp_path, BOX, -1)
    assert item.name == "a"
    assert item.surface is not None
    assert item.voxels.grid.voxel_size == ball(1).grid.voxel_size
    assert item.voxels.grid.origin == ball(1).grid.origin
    assert ball(1).grid.contains(item.voxels.grid.ijk).float().mean() > 0.5
    save_mesh(to_mesh(ball(1)).transform(lambda p: p * 100), tmp_path / "b.ply")
    with pytest.raises(ValueError, match=r"b\.ply: the mesh must lie in the box \(1.0, 1.0, 1.0\)"):
        read_samples(tmp_path, BOX, -1)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"samples must be a folder, got .*, which does not exist"):
        read_samples(tmp_path / "none", BOX, -1)
    with pytest.raises(FileNotFoundError, match=r"must hold voxels \(.npz\) or meshes"):
        read_samples(tmp_path, BOX, -1)
    fine = ball(1)
    written(tmp_path, {"a": fine})
    with pytest.raises(ValueError, match=r"must hold voxels of size 0\.25, got 1 files, all of other levels"):
        read_samples(tmp_path, BOX, 0)
    for wrong in (
        Grid.from_coords(fine.grid.ijk, voxel_size=1 / 32, origin=1 / 64),
        Grid.from_coords(fine.grid.ijk, voxel_size=1 / 16, origin=0.0),
    ):
        written(tmp_path, {"wrong": Voxels(wrong)})
        with pytest.raises(ValueError, match=r"wrong\.npz: voxel_size must be one of 0.25, 0.0625 and origin half"):
            read_samples(tmp_path, BOX, -1)
    for normal in (fine.attributes["normal"] * math.nan, fine.attributes["normal"][:, :2]):
        written(tmp_path, {"wrong": fine.with_attributes(normal=normal)})
        with pytest.raises(ValueError, match=r"wrong\.npz: normals must be \[N, 3\] and finite"):
            read_samples(tmp_path, BOX, -1)
    (tmp_path / "wrong.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"wrong\.npz"):
        read_samples(tmp_path, BOX, -1)


# The command


def test_the_command_prints_and_writes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jsonargparse", reason="the command line")
    folder = written(tmp_path / "samples", {f"{n:02}": ball(n) for n in range(0, 14, 2)})
    words = ["evaluate", str(folder), "--data", str(data), "--points", "128", "--emd"]
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["samples", "training", "held-out"]
    assert out[1].split() == ["shapes", str(TEST), str(TEST), str(TEST)]
    assert out[2].startswith("1-NNA ")
    assert out[2].endswith("standard error 14.4%")
    assert any(line.startswith("MMD, EMD ") for line in out)
    assert f"{TEST} of 7 samples were compared" in out[-2]
    assert out[-1] == f"all metrics, including those of each sample: {folder / 'evaluation.json'}"
    read = json.loads((folder / "evaluation.json").read_text())
    assert len(read["samples"]) == TEST
    assert read["rows"]["samples"]["nearest_iou"] == 1
    assert read["settings"]["emd_points"] == 256
    other = [*words[:-1], "--out", str(tmp_path / "other.json"), "--count", "3", "--on", "surface", "--split", "test"]
    assert main(other) == 0
    assert json.loads((tmp_path / "other.json").read_text())["settings"]["on"] == "surface"
    assert "EMD" not in capsys.readouterr().out


def test_the_command_says_what_is_wrong(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jsonargparse", reason="the command line")
    assert main(["evaluate", str(tmp_path), "--data", str(data)]) == 2
    assert "must hold voxels (.npz) or meshes" in capsys.readouterr().err
    assert main(["evaluate", str(data), "--data", str(tmp_path)]) == 2
    assert "is not a dataset" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_table_lacks_what_makes_no_sense() -> None:
    rows: dict[str, Metrics] = {
        "samples": {"shapes": 3, "one_nna": 1.0, "one_nna_error": 0.2, "mmd": math.inf},
        "training": {"shapes": 3, "one_nna": 0.5, "one_nna_error": 0.2, "mmd": 0.00123456},
        "held_out": {"shapes": 3},
    }
    lines = table(rows).splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["shapes", "3", "3", "3"],
        ["1-NNA", "100.0%", "50.0%", "-"],
        ["MMD", "inf", "0.00123", "-"],
    ]
