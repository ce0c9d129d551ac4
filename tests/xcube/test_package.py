"""`import xcube`: public names, imported when they are first used, and the example of its docstring."""

import doctest
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import xcube
from tests.xcube.cascades import tiny


def run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


def test_public_names_are_those_of_their_modules() -> None:
    assert set(xcube.__all__) == set(xcube._MODULES)
    assert {"XCubePipeline", "SampleOptions", "SamplerConfig", "VAE", "UNet", "Refiner", "ShapeFolder"} <= set(
        dir(xcube)
    )
    for name in xcube.__all__:
        assert getattr(xcube, name) is getattr(import_module(xcube._MODULES[name]), name)
        assert getattr(xcube, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'xcube' has no attribute 'Nothing'"):
        xcube.Nothing  # type: ignore[attr-defined]  # noqa: B018  (a type checker finds it, too)
    with pytest.raises(ImportError, match="Nothing"):
        from xcube import Nothing  # type: ignore[attr-defined]  # noqa: F401


def test_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "sparsevox", "lightning", "diffusers", "transformers", "jsonargparse")
    run(f"import sys, xcube; dir(xcube); assert not set(sys.modules) & set({heavy})")


def test_the_pipeline_imports_nothing_for_training() -> None:
    heavy = ("lightning", "transformers", "jsonargparse", "tensorboard", "torchmetrics")
    run(
        f"import sys; from xcube import XCubePipeline; found = set(sys.modules) & set({heavy}); assert not found, found"
    )


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="networks in folders")
    monkeypatch.chdir(tmp_path)
    xcube.XCubePipeline([tiny(0), tiny(1)]).save_pretrained("runs")
    test = doctest.DocTestParser().get_doctest(xcube.__doc__ or "", {}, "xcube", None, 0)
    assert len(test.examples) == 10
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
    assert result.failed == 0, "".join(report)
    assert (tmp_path / "sample.ply").stat().st_size > 1000
    assert test.globs["latents"].shape[1] == 8
