"""The rules of the house that a machine can check; CONTRIBUTING.md says why they are there."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import LIBRARY, ROOT, TREES, XCUBE, each, parse, python_files, relative, text_files

# Files of more than 400 lines, each with the reason. 700 lines are too much for any.
LONG: dict[str, str] = {
    "sparsevox/grid.py": "the one class that users meet first: every method of a grid in one place",
    "sparsevox/kernels/norm.py": "group norm of few rows and of many, forward and backward, which share their sums",
}
MAX_LINES, MAX_LINES_OF_LONG = 400, 700

# From the bottom to the top. A module imports from its own entry and from lower rows only.
LAYERS = (
    {"morton", "files", "_readback", "conv_geometry", "plans"},
    {"checks"},
    {"reference", "kernels"},
    {"ops"},
    {"grid"},
    {"_gather"},
    {"tensor"},
    {"shapes"},
    {"nn"},
    {"data", "io", "ptx", "testing", "tuning", "viz"},
    {"__init__"},
)

# The rooms of models/xcube, from the ground floor to the top. A file imports from its own room and from lower floors.
FLOORS = (
    {"config", "geometry"},
    {"data", "networks"},
    {"diffusion", "evaluation", "procedural"},
    {"checkpoints", "pipeline", "training"},
    {"__init__", "commands"},
    {"cli"},
)

# Stems that a folder lacks, each with the reason.
NO_KERNEL = {
    "attention": "PyTorch has fused attention for every device, and for ragged rows on NVIDIA GPUs",
    "nearest": "a search level by level in tensor ops, chunk by chunk, serves every device",
    "voxelize": "triangle tests are wide elementwise float64 arithmetic, which PyTorch runs on every device as it is",
}
NO_BENCH: dict[str, str] = {}

# What copies from the device to the host, or waits for it. sparsevox/_readback.py does it for everybody.
SYNCHRONIZES = {
    *("argwhere", "cpu", "item", "masked_select", "nonzero", "numpy", "synchronize"),
    *("tolist", "unique", "unique_consecutive"),
}

# Public functions and classes whose name is that of another one, each with the reason.
SAME_NAME = {
    "config_from_official": "one for each kind of official network, in the module of that kind",
    "our_name": "one for each kind of official network, in the module of that kind",
}
# Folders and files that do not count: their functions are not imported by name.
NOT_BY_NAME = {
    "models/xcube/commands/": "the functions are named as the commands are typed",
    "sparsevox/kernels/": "a kernel has the name of its op",
    "sparsevox/ops/bricks.py": "called as `bricks.stack(...)`",
    "sparsevox/reference/": "a reference has the name of its op",
}

# Where a file may be larger than a megabyte.
LARGE = ("assets/", "models/xcube/weights/", "tests/golden/")


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("[!_]*.py")}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever in the file. Relative imports ruff forbids."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def entry(name: str) -> str:
    """The file or folder of the library that holds `sparsevox.x.y`: x, or `__init__` where x is a public name."""
    first = f"{name}.__init__".split(".")[1]
    return first if (LIBRARY / first).is_dir() or (LIBRARY / f"{first}.py").is_file() else "__init__"


def level(name: str) -> int:
    found = [i for i, row in enumerate(LAYERS) if entry(name) in row]
    assert found, f"sparsevox/{entry(name)} has no place in LAYERS of {relative(Path(__file__))}"
    return found[0]


# One stem per op


@pytest.mark.parametrize("stem", sorted(stems(LIBRARY / "ops")))
def test_an_op_has_a_file_in_every_folder(stem: str) -> None:
    expected = [f"sparsevox/reference/{stem}.py", f"tests/test_{stem}.py", f"tests/definitions/{stem}.py"]
    expected += [f"sparsevox/kernels/{stem}.py"] * (stem not in NO_KERNEL)
    expected += [f"bench/{stem}.py"] * (stem not in NO_BENCH)
    missing = [name for name in expected if not (ROOT / name).is_file()]
    assert not missing, f"the op {stem} lacks {missing}"


@pytest.mark.parametrize("folder", ["reference", "kernels"])
def test_an_implementation_has_an_op(folder: str) -> None:
    strays = stems(LIBRARY / folder) - stems(LIBRARY / "ops")
    assert not strays, f"in sparsevox/{folder} but not in sparsevox/ops: {sorted(strays)}"


def test_there_are_ops() -> None:
    assert {"bricks", "topology", "neighbors"} <= stems(LIBRARY / "ops")


@pytest.mark.parametrize(("folder", "missing"), [("sparsevox/kernels", NO_KERNEL), ("bench", NO_BENCH)])
def test_exceptions_are_still_needed(folder: str, missing: dict[str, str]) -> None:
    assert not stems(ROOT / folder) & set(missing)
    assert set(missing) <= stems(LIBRARY / "ops")


# Imports point down


@each(python_files("sparsevox"))
def test_imports_point_down(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for line, name in imports(path):
        if name.split(".")[0] == "sparsevox" and entry(name) != entry(own):
            assert level(name) < level(own), f"{relative(path)}:{line}: {entry(own)} imports {entry(name)}"


@each(python_files("sparsevox"))
def test_the_library_imports_nothing_of_its_surroundings(path: Path) -> None:
    for line, name in imports(path):
        outside = name.split(".")[0] in {"xcube", "models", "bench", "tests", "examples"}
        assert not outside, f"{relative(path)}:{line} imports {name}"


@each(python_files("sparsevox"))
def test_only_the_library_file_of_ops_touches_torch_library(path: Path) -> None:
    if path == LIBRARY / "ops" / "_library.py":
        return
    found = [line for line, name in imports(path) if f"{name}.".startswith("torch.library.")]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.library":
            found.append(node.lineno)
    assert not found, f"{relative(path)} uses torch.library on lines {found}; ops/_library.py does that"


def room(name: str) -> str:
    """The room of `xcube.x.y`: x, or `__init__` where x is a public name of the package."""
    first = f"{name}.__init__".split(".")[1]
    return first if (XCUBE / first).is_dir() or (XCUBE / f"{first}.py").is_file() else "__init__"


def floor(name: str) -> int:
    found = [i for i, rooms in enumerate(FLOORS) if room(name) in rooms]
    assert found, f"models/xcube/{room(name)} has no place in FLOORS of {relative(Path(__file__))}"
    return found[0]


@each(python_files("models"))
def test_rooms_import_from_lower_floors(path: Path) -> None:
    own = ".".join(path.relative_to(XCUBE.parent).with_suffix("").parts)
    for line, name in imports(path):
        if name.split(".")[0] == "xcube" and room(name) != room(own):
            assert floor(name) < floor(own), f"{relative(path)}:{line}: {room(own)} imports {room(name)}"
    assert len(FLOORS) <= 6


def test_files_of_xcube_do_not_import_in_circles() -> None:
    files = {".".join(path.relative_to(XCUBE.parent).with_suffix("").parts): path for path in python_files("models")}
    graph = {
        own: {
            module
            for _, name in imports(path)
            for module in (name, name.rpartition(".")[0])
            if module in files and module != own
        }
        for own, path in files.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises where there is a circle, and names it


# One name for one thing


def test_a_public_name_is_defined_once() -> None:
    found: dict[str, set[str]] = {}
    for path in python_files("sparsevox", "models"):
        name = relative(path)
        if not path.name.startswith("_") and not name.startswith(tuple(NOT_BY_NAME)):
            for node in parse(path).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, set()).add(name)
    twice = {name: sorted(files) for name, files in found.items() if len(files) > 1}
    assert not {name: files for name, files in twice.items() if name not in SAME_NAME}
    assert set(SAME_NAME) <= set(twice), f"defined once, so no exceptions: {sorted(set(SAME_NAME) - set(twice))}"


# What files hold


@each(python_files(*TREES))
def test_a_file_is_short(path: Path) -> None:
    lines, name = len(path.read_text(encoding="utf-8").splitlines()), relative(path)
    assert lines <= MAX_LINES_OF_LONG, f"{name} has {lines} lines: split it by subject"
    assert lines <= MAX_LINES or name in LONG, f"{name} has {lines} lines: split it, or give a reason in LONG"
    assert lines > MAX_LINES or name not in LONG, f"{name} has {lines} lines and needs no reason in LONG"


def test_reasons_are_for_files_that_exist() -> None:
    assert not [name for name in LONG if not (ROOT / name).is_file()]


@each(text_files())
def test_only_weights_goldens_and_pictures_are_large(path: Path) -> None:
    assert path.stat().st_size <= 2**20 or relative(path).startswith(LARGE), f"{relative(path)} is larger than 1 MB"


@each(python_files("sparsevox/kernels"))
def test_kernels_do_not_wait_for_the_device(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            where = f"{relative(path)}:{node.lineno}"
            assert node.attr not in SYNCHRONIZES, f"{where}: .{node.attr} waits; _readback does that"


@each(python_files("sparsevox/kernels"))
def test_launchers_are_annotated(path: Path) -> None:
    """The type checker lets the arguments of kernels be, which only Triton knows, and so does not insist here."""
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef) and "jit" not in "".join(map(ast.unparse, node.decorator_list)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [argument.arg for argument in arguments if argument.annotation is None]
            where = f"{relative(path)}:{node.lineno}: {node.name}"
            assert not bare, f"{where}: no annotation of {bare}"
            assert node.returns is not None, f"{where}: no annotation of what it returns"


def test_tests_are_no_package() -> None:
    """A tests/xcube/__init__.py would hide the package xcube."""
    assert not [relative(path) for path in python_files("tests") if path.name == "__init__.py"]


def test_both_environments_have_the_same_pins() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==") for line in lines if not line.startswith("#"))

    main, second = pins("constraints.txt"), pins("constraints-triton36.txt")
    assert {name for name in second if second[name] != main.get(name)} == {"numpy", "triton"}


# The package as a stranger imports it


def run(code: str) -> None:
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout + result.stderr == ""
    assert result.returncode == 0


def test_import_is_silent_and_leaves_triton_alone() -> None:
    run("import sys, sparsevox; assert 'triton' not in sys.modules")


def test_works_without_triton() -> None:
    run(
        "import sys; sys.modules['triton'] = None\n"  # now `import triton` fails as where it is not installed
        "import sparsevox as sv\n"
        "assert sv.Grid.full((0, 0, 0), (2, 2, 2)).coarsen().num_voxels == 1"
    )
