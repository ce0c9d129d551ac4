"""The rules of docstrings and words that a machine can check; CONTRIBUTING.md says why they are there."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sources import ROOT, XCUBE, each, parse, python_files, relative, text_files

# Words that a reader of this field does not expect, or that are not American, and what to write. This file does
# not check itself.
WORDS = {
    r"crumb\w*": "small components",
    r"sub-manifold": "submanifold",
    r"anew": "from scratch",
    r"at hand": "cached, current",
    r"by rule": "procedural",
    r"for want of": "out of, without",
    r"what repairs": "the refiner",
    r"side by side": "in parallel, next to each other",
    r"so many": "the number",
    r"of yours": "your",
    r"as far as": "where available",
    r"beside": "next to, and",
    r"told": "conditioned, given",
    r"data sets?": "dataset",
    r"out of noise": "unconditional",
    r"masks? of children": "child occupancy",
    r"shares? of": "fraction of",
    r"the releases?|released": "official",
    r"(?:bits|bytes?|ints?|floats?|one|rows?|voxels?|points?|numbers?|channels?|scale) an? (?:axis|block|brick|channel|"
    r"column|grid|group|head|item|level|point|ring|row|shape|side|step|tap|tile|voxel)": "per",
    r"neighbour\w*|colour\w*|behaviour\w*|favour\w*|centre[ds]?|metres?|fulfil|grey|licence\w*|towards|aeroplane\w*|"
    r"artefact\w*|(?:cancel|label|model)l(?:ed|ing)|(?:analy|initiali|normali|optimi|organi|quanti|recogni|seriali|"
    r"speciali|summari|visuali|voxeli)s(?:e[ds]?|ing|ation\w*)": "the American spelling",
}
FORBIDDEN = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)

# Folders of one machine and hosts of package registries, spelled so that this file does not hold them.
PRIVATE = re.compile(r"(?<![\w.])/(?:root|home|Users)/|py[p]i\.org|python[h]osted|npm[j]s\.org|deb\.debia[n]")


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


@each([path for path in text_files() if path.suffix in {".py", ".md", ".yaml"} and path != Path(__file__)])
def test_the_language_is_that_of_the_field(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for word in FORBIDDEN.findall(line):
            (better,) = (b for pattern, b in WORDS.items() if re.fullmatch(pattern, word, re.IGNORECASE))
            pytest.fail(f"{relative(path)}:{number}: {word!r}; write: {better}")


@each(python_files("sparsevox", "models", "bench", "examples"))
def test_a_docstring_says_something(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            words = (ast.get_docstring(node) or "There is none.").split()
            assert len(words) > 1, f"{relative(path)}: {getattr(node, 'name', '')}: {' '.join(words)!r} says nothing"
