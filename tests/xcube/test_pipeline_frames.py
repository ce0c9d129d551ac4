"""The call stack from `XCubePipeline.sample` to the denoiser stays short enough to read."""

import traceback
from pathlib import Path
from typing import Any

import sparsevox
import xcube
from tests.xcube.cascades import tiny
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline

OWN = tuple(str(Path(package.__file__ or "").parent) for package in (sparsevox, xcube))


def test_at_most_five_own_frames_from_sample_to_the_denoiser() -> None:
    pipeline = XCubePipeline([tiny(0)])
    stacks: list[list[str]] = []

    def record(module: Any, args: Any) -> None:
        stacks.append([f.name for f in traceback.extract_stack() if f.filename.startswith(OWN)])

    handle = pipeline.levels[0].denoiser.register_forward_pre_hook(record)
    pipeline.sample(1, SampleOptions(steps=1, quiet=True), guidance=1.0)
    handle.remove()
    assert stacks == [["sample", "_generate", "in_batches", "_denoise", "sample_latents"]]
