"""The comparison of a cascade with a single level: that it is fair, and what it prints."""

import json
from pathlib import Path

import pytest
import torch

from bench import levels
from sparsevox import Voxels
from xcube.data.hierarchy import build_hierarchy
from xcube.networks.vae import VAE
from xcube.procedural.shapes import FAMILIES, make
from xcube.training.jobs import box_of_parts, minutes_of, read_preset

for package in ("jsonargparse", "lightning", "yaml"):
    pytest.importorskip(package, reason="training from the command line")


def test_both_have_the_same_time_and_the_same_finest_voxels() -> None:
    cascade, single = (read_preset(preset) for preset, _ in levels.MODELS.values())
    assert minutes_of(cascade, 1) == minutes_of(single, 1)
    for parts, (_, said) in zip((cascade, single), levels.MODELS.values(), strict=True):
        assert list(box_of_parts(parts).levels) == [int(size) for size in said.split(",")]
    told = [{p.name: p.options.get("categories") for p in parts}["denoiser-0"] for parts in (cascade, single)]
    assert told[0] == told[1] == list(FAMILIES)


def test_the_single_level_is_a_volume_of_latents() -> None:
    parts = read_preset(levels.MODELS["single"][0])
    torch.manual_seed(0)
    vae = VAE(parts[0].options["model"]).eval()
    shape = build_hierarchy(make("chair-000000", box_of_parts(parts)), box_of_parts(parts))[0]
    with torch.no_grad():
        assert vae.encode(Voxels.stack([shape])).grid.num_voxels == 8**3


def test_a_row_for_each_seed_and_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, mmd in (("cascade-0", 0.1), ("cascade-1", 0.3), ("single-0", 0.5)):
        folder = tmp_path / name / "samples"
        folder.mkdir(parents=True)
        row = dict.fromkeys(levels.METRICS, 0.0) | {"mmd": mmd}
        (folder / "evaluation.json").write_text(json.dumps({"rows": {"samples": row}}))
    assert levels.main(["--out", str(tmp_path), "--seeds", "0"]) == 0  # nothing is left to do
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[0] == list(levels.METRICS)
    rows = {" ".join(row[:-5]): float(row[-5]) for row in said[1:]}
    assert list(rows) == ["cascade-0", "cascade-1", "cascade, mean", "single-0", "single, mean"]
    assert list(rows.values()) == [0.1, 0.3, 0.2, 0.5, 0.5]


def test_a_command_that_fails_ends_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="xcube data parts"):
        levels.main(["--out", str(tmp_path), "--shapes", "0", "--seeds", "0"])
