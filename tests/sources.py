"""The files of the repository, for the tests that read them."""

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, XCUBE = ROOT / "sparsevox", ROOT / "models" / "xcube"
TREES = ("sparsevox", "models", "bench", "examples", "tests")


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
