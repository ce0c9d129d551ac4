"""The README tells the truth: its examples run, its table is measured, its links lead somewhere."""

import doctest
import importlib
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsevox as sv
from bench import report
from bench.scenes import scene

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_examples_print_what_they_say(tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra viz")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```pycon\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", None, 0)
    assert len(test.examples) >= 15
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.failed == 0, "".join(report)
    assert (tmp_path / "shell.png").stat().st_size > 1000


def test_the_example_of_xcube_runs(tmp_path, monkeypatch, capsys) -> None:
    """With the weights in the package."""
    pytest.importorskip("diffusers", reason="needs the extra xcube")
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert capsys.readouterr().out.count("Voxels(attributes: normal") == 4
    assert len(list(tmp_path.glob("chair-*.glb"))) == 4
    assert [len(shape.levels) for shape in names["finer"]] == [1, 1]


@pytest.mark.parametrize(
    "row",
    re.findall(r"^\| `(\w+) (\d+)`.*?\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, flags=re.MULTILINE),
)
def test_memory_is_what_the_table_says(row) -> None:
    name, size, voxels, per_brick, per_voxel = row
    grid = sv.Grid.from_coords(scene(name, int(size)))
    assert grid.num_voxels == pytest.approx(int(voxels.replace(",", "")), rel=1e-3)
    assert grid.num_voxels / grid.num_bricks == pytest.approx(float(per_brick), abs=0.1)
    assert grid.nbytes / grid.num_voxels == pytest.approx(float(per_voxel), abs=0.01)


def test_every_public_name_of_a_grid_is_there() -> None:
    verbs = TEXT.split("## Methods of a grid")[1].split("\n## ")[0]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", verbs))))
    internal = {"bricks", "table"}
    public = {name for name in dir(sv.Grid.empty()) if not name.startswith("_")} - internal
    assert public <= named, f"not in the README: {sorted(public - named)}"


def test_every_operation_and_module_is_in_the_tables() -> None:
    features = TEXT.split("## Features")[1].split("\n## ")[0]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", features))))
    for catalog in (sv.ops, sv.nn, sv):
        public = set(catalog.__all__) - {"Grid", "KernelMap", "ChildMap"}
        assert public <= named, f"not in the README: {sorted(public - named)}"
    attributes = {name for name in dir(sv.SparseTensor) if not name.startswith("_")}
    assert attributes <= named, f"not in the README: {sorted(attributes - named)}"


def test_what_users_of_other_libraries_are_pointed_to_exists() -> None:
    table = TEXT.split("## Coming from")[1].split("\n## ")[0]
    rows = [line.split(" | ")[-1] for line in table.splitlines() if line.startswith("| ")][2:]
    pointers = [name for row in rows for name in re.findall(r"(?:nn|SparseTensor|Grid)\.\w+", row)]
    assert len(pointers) > 12
    for name in pointers:
        owner, attribute = name.split(".")
        assert hasattr(getattr(sv, owner), attribute), name
    grid, x = sv.Grid.empty(), sv.SparseTensor(sv.Grid.empty(), torch.zeros(0, 1))
    for name in [word for row in rows for word in re.findall(r"\b(?:x|grid)\.\w+", row)]:
        assert hasattr({"x": x, "grid": grid}[name.split(".")[0]], name.split(".")[1]), name
    for source in re.findall(r'`"(\w+)"`', table):
        assert sv.nn.convert_weight(torch.zeros(2, 3), source).shape[2:] == (1, 1, 1)


def test_the_two_commands_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in TEXT
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^##+ (.*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"#" + title.lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("name", "least"), [("README.md", 9), ("models/xcube/README.md", 2), ("bench/README.md", 2)])
def test_links_lead_somewhere(name: str, least: int) -> None:
    page = ROOT / name
    links = re.findall(r"\]\((?!https://)([^)]+)\)", page.read_text(encoding="utf-8"))
    assert len(links) >= least
    for link in links:
        path, hash_sign, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not hash_sign or f"#{anchor}" in anchors(target), link


@pytest.mark.parametrize("name", ["README.md", "models/xcube/README.md"])
def test_commands_of_xcube_parse(name: str) -> None:
    pytest.importorskip("jsonargparse", reason="the command line")
    from xcube import cli

    text = (ROOT / name).read_text(encoding="utf-8")
    lines = re.findall(r"^xcube (.*)", text, flags=re.MULTILINE)
    demos = re.findall(r'make demo DEMO="(.*?)"', text)
    assert len(lines) >= 8
    assert demos
    for line in [*lines, *(f"demo {words}" for words in demos)]:
        cli.parser().parse_args(cli._with_preset_files(shlex.split(line, comments=True)))
    assert all("--train" in words for words in demos)  # the others are refused


def test_commands_of_the_benchmarks_parse() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("models/xcube/README.md", "bench/README.md"))
    commands = re.findall(r"(?:^|`)python -m (bench[\w.]*) ([^`\n]+)", text, flags=re.MULTILINE)
    assert len(commands) >= 10
    for module, words in commands:
        main = f"{module}.__main__" if module == "bench" else module
        importlib.import_module(main).parse(shlex.split(words, comments=True))


def test_tables_of_the_benchmarks_are_those_of_the_results() -> None:
    tables = report.markdown(report.load(sorted((ROOT / "bench" / "results").glob("*.csv"))))
    assert f"{report.BEGIN}\n{tables}\n{report.END}" in (ROOT / "bench" / "README.md").read_text(encoding="utf-8")


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / "assets").glob("*.png")}
    assert {"shapes.png", "topology.png"} <= set(sizes)
    assert max(sizes.values()) <= 200_000, sizes


def test_the_example_of_topology_runs_on_a_mesh_of_the_user_too(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra viz")
    trimesh = pytest.importorskip("trimesh", reason="needs the extra io")
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.stl")
    arguments = ["--out", str(tmp_path / "out"), "--mesh", str(tmp_path / "box.stl"), "--resolution", "16"]
    monkeypatch.setattr("sys.argv", ["topology.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "topology.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok") for line in lines) == 6
    assert any(line.startswith("box ") for line in lines)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"shapes.png", "topology.png"}
