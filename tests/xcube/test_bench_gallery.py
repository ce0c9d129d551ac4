"""The small picture of samples."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.gallery import WIDTH, main
from sparsevox import Grid, Voxels
from sparsevox.io import save_voxels
from xcube.pipeline.output import SampleFolder

pytest.importorskip("matplotlib", reason="pictures")


def test_full_samples_are_in_it_and_the_folder_is_left_alone(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path / "samples", {"seed": 0})
    for number, size in enumerate((3, 0, 4)):
        ijk = torch.cartesian_prod(*[torch.arange(size)] * 3)
        voxels = Voxels(Grid.from_coords(ijk, voxel_size=0.1), {"normal": torch.zeros(len(ijk), 3)})
        save_voxels(voxels, folder.file(number), half=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").rglob("*")}
    assert main([str(tmp_path / "samples"), "--out", str(tmp_path / "small.png")]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").rglob("*")}
    with pytest.raises(FileNotFoundError, match=r"none holds no samples: it lacks settings\.json"):
        main([str(tmp_path / "none"), "--out", str(tmp_path / "no.png")])
    assert not (tmp_path / "none").exists()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        main([str(tmp_path / "damaged"), "--out", str(tmp_path / "no.png")])
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.width == WIDTH
        assert picture.mode == "P"
        columns = torch.tensor(list(picture.convert("L").tobytes())).reshape(picture.height, picture.width).amin(0)
    halves = [bool((half < 250).any()) for half in columns.split(WIDTH // 2)[:2]]
    assert halves == [True, True]  # the two full ones, side by side
