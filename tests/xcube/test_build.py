"""Datasets built from shapes: the same bytes however the work was done, and no shape spoils the others."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any

import pytest
import torch

import sparsevox as sv
from sparsevox.io import from_trimesh, load_voxels, save_mesh, save_points
from xcube.data import Attribute, Box, ShapeFolder, Source, build, file_sources
from xcube.data.dataset import read_card, read_index

trimesh = pytest.importorskip("trimesh", reason="shapes to build from")

MODULE = importlib.import_module("xcube.data.build")  # the package has a function of this name
BOX = Box((4, 16))
FEW: dict[str, Any] = {"box": BOX, "samples": 300}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of twelve small meshes, some below others."""
    root = tmp_path_factory.mktemp("shapes")
    for number in range(12):
        folder = root / ("flat" if number % 3 else "deep/er")
        folder.mkdir(parents=True, exist_ok=True)
        extents = (0.2 + 0.03 * number, 0.3, 0.5 - 0.02 * number)
        save_mesh(from_trimesh(trimesh.creation.box(extents)), folder / f"box {number}.ply")
    return root


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def assert_whole(root):
    """The index names files that are there, whole, with as many voxels as it says."""
    card = read_card(root)
    for entry in read_index(root, card):
        for resolution, voxels in zip(card.box.levels, entry.voxels, strict=True):
            assert load_voxels(root / "shapes" / entry.name / f"{resolution}.npz").num_voxels == voxels


def make(kind):
    """A shape in need of nothing from the disk; workers can import nothing from here."""
    grid = sv.Grid.full(-2, 2, voxel_size=1 / 16, origin=1 / 32)
    return sv.Voxels(grid, {"label": torch.full((grid.num_voxels,), kind)})


# --- The same bytes


@pytest.fixture(scope="module")
def built(shapes, tmp_path_factory):
    """What a build in this process makes."""
    out = tmp_path_factory.mktemp("built") / "set"
    report = build(file_sources([shapes]), out, **FEW)
    assert (len(report.built), report.kept, report.skipped) == (12, 0, [])
    assert_whole(out)
    return contents(out)


def test_files_of_a_data_set(built):
    names = {name.partition("/")[2].rpartition("/")[0] for name in built if name.startswith("shapes/")}
    assert {"flat/box%201", "deep/er/box%200"} <= names
    assert len(names) == 12
    assert set(built) == {f"shapes/{name}/{n}.npz" for name in names for n in BOX.levels} | {
        *("card.json", "index.csv", "report.csv")
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_order_change_nothing(shapes, built, tmp_path, workers):
    build(file_sources([shapes])[::-1], tmp_path / "set", **FEW, workers=workers)
    assert contents(tmp_path / "set") == built


def test_a_data_set_made_in_parts(shapes, built, tmp_path):
    sources = file_sources([shapes])
    first = build(sources[:5], tmp_path, **FEW)
    second = build(sources, tmp_path, **FEW)
    third = build(sources, tmp_path, **FEW)
    assert (len(first.built), len(second.built), second.kept, len(third.built), third.kept) == (5, 7, 5, 0, 12)
    assert contents(tmp_path) == built


def test_a_file_that_went_missing_is_made_again(shapes, built, tmp_path):
    build(file_sources([shapes]), tmp_path, **FEW)
    gone = sorted((tmp_path / "shapes").rglob("16.npz"))[3]
    gone.unlink()
    assert len(build(file_sources([shapes]), tmp_path, **FEW).built) == 1
    assert contents(tmp_path) == built


def test_a_shape_does_not_depend_on_the_others(shapes, built, tmp_path):
    alone = [source for source in file_sources([shapes]) if source.name == "flat/box%204"]
    build(alone, tmp_path, **FEW)
    made = contents(tmp_path)
    for name in ("shapes/flat/box%204/4.npz", "shapes/flat/box%204/16.npz"):
        assert made[name] == built[name]


def test_the_seed_changes_normals(shapes, built, tmp_path):
    build(file_sources([shapes])[:1], tmp_path, **FEW, seed=1)
    name = next(name for name in contents(tmp_path) if name.endswith("16.npz"))
    assert contents(tmp_path)[name] != built[name]


# --- Broken off


SCRIPT = """
import sys
from xcube.data import Box, build, file_sources
sys.modules["xcube.data.build"].SAVE_SECONDS = 0
if __name__ == "__main__":
    build(file_sources([sys.argv[1]]), sys.argv[2], Box((4, 16)), samples=300, workers=int(sys.argv[3]))
"""


def start(shapes, out, workers):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(shapes), str(out), str(workers)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a group of processes, as POSIX has them")
@pytest.mark.parametrize(("after", "workers"), [(1, 2), (6, 0)])
def test_killed_at_any_moment(shapes, built, tmp_path, after, workers):
    out = tmp_path / "set"
    process = start(shapes, out, workers)
    wait_for(lambda: len(list(out.glob("shapes/**/*.npz"))) >= after or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL  # it was at work
    wait_for(lambda: not alive(process.pid))  # its workers end too
    for path in out.rglob("*.npz"):
        load_voxels(path)
    if (out / "index.csv").exists():
        assert_whole(out)
    build(file_sources([shapes]), out, **FEW)
    assert contents(out) == built


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 9, 24, 25])
def test_a_full_disk(shapes, built, tmp_path, monkeypatch, number):
    """The disk is full from some file on, also for the index at the end."""
    calls = 0
    whole = os.fsync

    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "SAVE_SECONDS", 0.0)
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left on device"):
            build(file_sources([shapes]), tmp_path / "set", **FEW)
    if (tmp_path / "set" / "index.csv").exists():
        assert_whole(tmp_path / "set")
    build(file_sources([shapes]), tmp_path / "set", **FEW)
    assert contents(tmp_path / "set") == built


# --- Shapes that cannot be used


def flawed(folder):
    """Files with a flaw each, and the reason that the report should give."""
    mesh = from_trimesh(trimesh.creation.box((0.3, 0.3, 0.3)))
    save_mesh(mesh, folder / "good.ply")
    (folder / "nothing.obj").write_text("")
    (folder / "garbage.stl").write_bytes(b"\0garbage" * 20)
    (folder / "no faces.obj").write_text("v 0 0 0\nv 1 0 0\n")
    (folder / "nan.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n")
    (folder / "cut.ply").write_bytes((folder / "good.ply").read_bytes()[:-20])
    save_points(sv.Points(torch.tensor([[0.0, 0.0, float("nan")]])), folder / "lost.npz")
    save_points(sv.Points(torch.tensor([[0.1, 0.1, 0.1]])), folder / "bare.npz")
    save_mesh(mesh.transform(lambda p: p + 9), folder / "far.ply")
    return {
        "nothing": "unreadable",
        "garbage": "unreadable",
        "no%20faces": "unreadable",
        "nan": "unreadable",
        "cut": "unreadable",
        "lost": "not finite",
        "bare": "other attributes",
        "far": "out of the box",
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_flaws_are_reported_and_the_others_built(tmp_path, workers):
    (tmp_path / "in").mkdir()
    expected = flawed(tmp_path / "in")
    report = build(file_sources([tmp_path / "in"]), tmp_path / "out", **FEW, workers=workers)
    assert [entry.name for entry in report.built] == ["good"]
    assert {skipped.name: skipped.reason for skipped in report.skipped} == expected
    for skipped in report.skipped:
        assert skipped.path.startswith(str(tmp_path / "in"))
        assert skipped.detail
    lines = (tmp_path / "out" / "report.csv").read_text().splitlines()
    assert lines[0] == "name,path,reason,detail"
    assert len(lines) == 1 + len(expected)
    assert str(report).splitlines()[:2] == ["1 shapes built, 8 skipped", "  5 unreadable"]


def test_what_sources_may_make(tmp_path):
    def fail():
        raise RuntimeError("no such thing")

    empty = sv.Voxels(sv.Grid.empty(1, voxel_size=1 / 16, origin=1 / 32), {"label": torch.zeros(0)})
    no_faces = sv.Mesh(torch.zeros(3, 3), torch.zeros(0, 3).long())
    sources = [
        Source("good", partial(make, 7)),
        Source("fails", fail),
        Source("no-voxels", lambda: empty),
        Source("no-faces", lambda: no_faces),
        Source("no-points", lambda: sv.Points(torch.zeros(0, 3))),
        Source("wrong-voxels", lambda: sv.Voxels(sv.Grid.full(0, 2, batch_size=2))),
        Source("no-shape", partial(eval, "2")),
    ]
    report = build(sources, tmp_path, BOX, attributes=["label"])
    assert [(entry.name, entry.watertight) for entry in report.built] == [("good", None)]
    assert {skipped.name: (skipped.reason, skipped.detail) for skipped in report.skipped} == {
        "fails": ("unreadable", "no such thing"),
        "no-voxels": ("empty", "there are no voxels"),
        "no-faces": ("empty", "the mesh has no faces"),
        "no-points": ("empty", "there are no points"),
        "no-shape": ("unreadable", "expected a Mesh, Points or Voxels, got int"),
        "wrong-voxels": ("out of the box", "shape must be one grid, got a batch of 2"),
    }
    assert ShapeFolder(tmp_path, None)[0].attributes["label"].unique().tolist() == [7]


def test_no_memory_for_a_shape(shapes, tmp_path, monkeypatch):
    def build_hierarchy(*_, **__):
        raise MemoryError

    monkeypatch.setattr(MODULE, "build_hierarchy", build_hierarchy)
    report = build(file_sources([shapes])[:1], tmp_path, **FEW)
    assert [(skipped.reason, skipped.detail) for skipped in report.skipped] == [("failed", "MemoryError()")]
    assert read_index(tmp_path, read_card(tmp_path)) == []


def test_a_missing_package_is_no_flaw_of_a_file(tmp_path):
    def load():
        raise ImportError("meshes need trimesh")

    with pytest.raises(ImportError, match="meshes need trimesh"):
        build([Source("a", load)], tmp_path, BOX)


def test_a_worker_that_dies_is_reported_and_the_others_are_built(shapes, built, tmp_path):
    killers = [Source(name, partial(os._exit, 9)) for name in ("deep/killer", "z")]
    report = build([*file_sources([shapes]), *killers], tmp_path, **FEW, workers=2)
    assert [(s.name, s.reason) for s in report.skipped] == [(k.name, "worker died") for k in killers]
    left = {name: data for name, data in contents(tmp_path).items() if name != "report.csv"}
    assert left == {name: data for name, data in built.items() if name != "report.csv"}
    assert len(build(file_sources([shapes]), tmp_path, **FEW).built) == 0
    assert contents(tmp_path) == built


def test_open_meshes_are_built_and_counted(tmp_path):
    ball = trimesh.creation.icosphere(2, radius=0.3)
    whole = from_trimesh(ball)
    ball.update_faces(ball.triangles_center[:, 2] > 0)
    half = from_trimesh(ball)
    report = build([Source("whole", lambda: whole), Source("half", lambda: half)], tmp_path, **FEW)
    assert {entry.name: entry.watertight for entry in report.built} == {"whole": True, "half": False}
    assert "1 meshes are not watertight, so their inside is undefined" in str(report)


# --- Arguments and folders


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "dask"}, "engine must be 'processes' or 'ray', got 'dask'"),
        ({"engine": "ray"}, "workers must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"outside": "cut"}, "outside must be 'error', 'clip' or 'rescale', got 'cut'"),
        ({"splits": {}}, "splits must be fractions"),
        ({"splits": {"train": -1.0, "val": 2.0}}, "splits must be fractions that are not negative"),
        ({"splits": {"train": 0.0}}, "splits must be fractions that are not negative, and not all 0"),
        ({"attributes": ["part"]}, r"attributes must be names of normal, .* got \['part'\]"),
        ({"attributes": "normal"}, r"attributes must be names of normal, .* got 'normal'"),
        ({"attributes": {"part": Attribute("text", None)}}, "attribute 'part' must have a dtype of"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        build([Source("a", partial(make, 0))], tmp_path / "out", BOX, **arguments)
    assert not (tmp_path / "out").exists()


def test_other_options_are_an_error_unless_overwritten(tmp_path):
    sources = [Source("a", partial(make, 1))]
    build(sources, tmp_path, BOX, attributes=["label"], license="CC0")
    before = contents(tmp_path)
    for other, name in (({"license": "MIT"}, "license"), ({"license": "CC0", "seed": 2}, "options")):
        with pytest.raises(ValueError, match=f"resumed with its own options, but {name} differ: {name} of"):
            build(sources, tmp_path, BOX, attributes=["label"], **other)
    with pytest.raises(ValueError, match="but levels, voxel_sizes, origins differ"):
        build(sources, tmp_path, Box((8, 16)), attributes=["label"], license="CC0")
    assert contents(tmp_path) == before
    build(
        [Source("b", partial(make, 2))],
        tmp_path,
        Box((8, 16)),
        attributes={"label": Attribute("uint8", None)},
        overwrite=True,
    )
    assert {entry.name for entry in ShapeFolder(tmp_path, None).entries} == {"b"}
    assert not (tmp_path / "shapes" / "a").exists()


def test_a_newer_version_goes_on_with_an_older_folder(tmp_path):
    build([Source("a", partial(make, 1))], tmp_path, BOX, attributes=["label"])
    path = tmp_path / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"creator": "sparsevox 0.0.1"}))
    sources = [Source(name, partial(make, 1)) for name in ("a", "b")]
    assert len(build(sources, tmp_path, BOX, attributes=["label"]).built) == 1
    assert read_card(tmp_path).creator == "sparsevox 0.0.1"


@pytest.mark.parametrize("name", ["precious.txt", "card.json"])
def test_nothing_of_others_is_touched(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"out must be a new or empty folder|card.json: "):
        build([Source("a", partial(make, 1))], tmp_path, BOX, attributes=["label"], overwrite=True)
    assert contents(tmp_path) == {name: b"{}"}


def test_what_was_built_before_stays_without_its_source(tmp_path):
    build([Source("a", partial(make, 1))], tmp_path, BOX, attributes=["label"])
    report = build([Source("b", partial(make, 2))], tmp_path, BOX, attributes=["label"])
    assert (len(report.built), report.kept) == (1, 0)
    assert [entry.name for entry in ShapeFolder(tmp_path, None).entries] == ["a", "b"]
