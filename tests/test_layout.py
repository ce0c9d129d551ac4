"""The rules of the house that a machine can check; CONTRIBUTING.md says why they are there."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, XCUBE = ROOT / "sparsevox", ROOT / "models" / "xcube"
TREES = ("sparsevox", "models", "bench", "examples", "tests")

# Files of more than 400 lines, each with the reason. 700 lines are too much for any.
LONG: dict[str, str] = {
    "sparsevox/grid.py": "the one class that users meet first: every method of a grid in one place",
}
MAX_LINES, MAX_LINES_OF_LONG = 400, 700

# From the bottom to the top. A module imports from its own entry and from lower rows only.
LAYERS = (
    {"morton", "files", "_readback", "geometry", "plans"},
    {"checks"},
    {"reference", "kernels"},
    {"ops"},
    {"grid"},
    {"_gather"},
    {"tensor"},
    {"shapes"},
    {"nn"},
    {"data", "io", "testing", "tuning", "viz"},
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

# Where a file may be larger than a megabyte.
LARGE = ("assets/", "models/xcube/weights/", "tests/golden/")

# Folders of one machine and hosts of package registries, spelled so that this file does not hold them.
PRIVATE = re.compile(r"(?<![\w.])/(?:root|home|Users)/|py[p]i\.org|python[h]osted|npm[j]s\.org|deb\.debia[n]")


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("[!_]*.py")}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_files(*trees: str) -> list[Path]:
    return sorted(path for tree in trees for path in (ROOT / tree).rglob("*.py"))


def text_files() -> list[Path]:
    """Everything that is, or would be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):  # an unpacked sdist is no git checkout
        return python_files(*TREES)
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=relative)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


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
    expected = [f"sparsevox/reference/{stem}.py", f"tests/test_{stem}.py"]
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


def undocumented(node: ast.Module | ast.ClassDef, path: Path, prefix: str = "") -> Iterator[str]:
    """Public functions, classes and methods that need a docstring and have none.

    None is needed by overloads, setters, properties that return an expression without a call, and methods that
    override one of a base class. A `forward` needs one all the same: it gives the shapes.
    """
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for child in node.body:
        if isinstance(child, definitions) and not child.name.startswith("_"):
            decorators = {ast.unparse(decorator).split(".")[-1] for decorator in child.decorator_list}
            plain = isinstance(child.body[0], ast.Return) and not any(isinstance(n, ast.Call) for n in ast.walk(child))
            exempt = decorators & {"overload", "override", "setter"} or ("property" in decorators and plain)
            if ast.get_docstring(child) is None and not exempt and not overrides(path, f"{prefix}{child.name}"):
                yield prefix + child.name
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, path, f"{prefix}{child.name}.")


def overrides(path: Path, name: str) -> bool:
    """Whether a base class has the method `Class.method` of a file too."""
    owner, _, method = name.rpartition(".")
    if not owner or method == "forward":
        return False
    root = XCUBE.parent if XCUBE in path.parents else ROOT
    try:
        found: Any = importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
    except ImportError:  # an extra that is not installed
        return True
    for part in owner.split("."):
        found = getattr(found, part)
    return any(method in vars(base) for base in found.__mro__[1:])


@each(python_files("sparsevox", "models", "bench", "examples"))
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = parse(path)
    missing = list(undocumented(tree, path))
    if tree.body and ast.get_docstring(tree) is None:
        missing.append("the module")
    assert not missing, f"{relative(path)}: no docstring on {', '.join(missing)}"


@each(text_files())
def test_nothing_names_one_machine(path: Path) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # a picture
        return
    for number, line in enumerate(text.splitlines(), start=1):
        assert not PRIVATE.search(line), f"{relative(path)}:{number} names a path or registry: {line.strip()}"


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
