"""CITATION.cff has the keys that version 1.2.0 of the format requires, and the version and license of the package."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

import sparsevox

ROOT = Path(__file__).parents[1]
yaml = pytest.importorskip("yaml", reason="reads CITATION.cff")


def test_the_citation_is_that_of_the_package() -> None:
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["title"] == project["project"]["name"]
    assert citation["authors"] == project["project"]["authors"]
    assert citation["license"] == project["project"]["license"]
    assert citation["version"] == sparsevox.__version__
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert all({"family-names", "given-names"} <= author.keys() for author in paper["authors"])
    assert paper["url"].endswith("2312.03806")
    assert "CITATION.cff" in project["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
