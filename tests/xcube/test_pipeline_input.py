"""The cascade with small random networks: shapes to begin with, folders, and what is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, Voxels
from tests.xcube.cascades import refiner, tiny, unet, vae, watched
from xcube.diffusion.objective import DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig
from xcube.geometry.normals import estimated_normals
from xcube.networks.conditions import Text
from xcube.networks.losses import voxel_iou
from xcube.networks.pretrained import save_pretrained
from xcube.pipeline.checkpoint import TextSource
from xcube.pipeline.options import Sample, SampleOptions, shape_requests
from xcube.pipeline.pipeline import XCubePipeline
from xcube.pipeline.reconstruct import reconstruct

STEPS = 2
QUICK = SampleOptions(steps=STEPS, quiet=True)
TEXT = 6  # channels of a token


@pytest.fixture(scope="module")
def three() -> XCubePipeline:
    return XCubePipeline([tiny(0, refiner=refiner(0)), tiny(1), tiny(2, refiner=refiner(2))])


@pytest.fixture(scope="module")
def two() -> XCubePipeline:
    return XCubePipeline([tiny(0), tiny(1)])


def made(pipeline: XCubePipeline, n: int, **options: Any) -> list[Sample]:
    return pipeline.sample(n, SampleOptions(**({"steps": STEPS, "quiet": True} | options)))


def same_bits(first: Voxels, second: Voxels) -> bool:
    return (
        first.grid.same_voxels(second.grid)
        and first.attributes.keys() == second.attributes.keys()
        and all(torch.equal(value, second.attributes[name]) for name, value in first.attributes.items())
    )


def all_same(first: Sequence[Sample], second: Sequence[Sample]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(same_bits(a, b) for x, y in pairs for a, b in zip(x.levels, y.levels, strict=True))


def least_iou(first: Sequence[Sample], second: Sequence[Sample]) -> float:
    pairs = [(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x.levels, y.levels, strict=True)]
    return min(float(voxel_iou(a.grid, b.grid).min()) for a, b in pairs)


@pytest.fixture(scope="module")
def classes() -> XCubePipeline:
    first = tiny(0, denoiser=unet(0, categories=2), categories=("chair", "lamp"))
    return XCubePipeline([first, tiny(1, denoiser=unet(1, categories=2), categories=("chair", "lamp"))])


# From shapes


def ball(side: int, radius: float, thick: float = 0.9) -> Grid:
    axis = torch.arange(-side // 2, side // 2)
    ijk = torch.cartesian_prod(axis, axis, axis)
    height = (ijk + 0.5).square().sum(1).sqrt() - radius * side
    shell = ijk[(height < 0.9) & (height > -thick)]
    return Grid.from_coords(shell, voxel_size=1 / side, origin=0.5 / side)


def test_upsampling_is_the_cascade_from_there_on(three: XCubePipeline) -> None:
    shapes = made(three, 2)
    for level in (1, 2):
        given = Voxels.stack([shape.levels[level - 1] for shape in shapes])
        found = three.upsample(given, QUICK, level=level)
        assert all(shape.first == level for shape in found)
        assert least_iou(found, [Sample(shape.levels[level:]) for shape in shapes]) >= 0.99
        assert all_same(found, three.upsample(given, QUICK))  # the level is that of the voxels
    variants = three.upsample(shapes[0].levels[1], QUICK, numbers=[0, 1, 2])
    assert len(variants) == 3
    assert not all_same(variants[:1], variants[1:2])


def test_normals_are_estimated_where_there_are_none(three: XCubePipeline) -> None:
    grid = ball(16, 0.3)
    [bare] = three.upsample(grid, QUICK)
    attributes = {"normal": 7 * estimated_normals(grid), "label": torch.ones(len(grid.ijk))}
    [given] = three.upsample(Voxels(grid, attributes), QUICK)
    assert same_bits(bare.finest, given.finest) or least_iou([bare], [given]) >= 0.99
    assert (bare.first, len(bare.levels)) == (2, 1)


def test_fill_is_taken_from_the_level_before_or_unknown() -> None:
    coarse = vae(0, fill=True)
    torch.nn.init.constant_(coarse.decoder.get_parameter("fill.out.bias"), 0.5)
    levels = [tiny(0, vae=coarse), tiny(1, denoiser=unet(1, fill=True))]
    pipeline, seen = XCubePipeline(levels), list[Tensor]()
    with watched(levels[1].denoiser, lambda args: seen.append(args[2].fill)):
        [shape] = pipeline.sample(1, QUICK)
        bare = Voxels(shape.levels[0].grid, {"normal": shape.levels[0].attributes["normal"]})
        pipeline.upsample(bare, QUICK)
    fill = shape.levels[0].attributes["fill"]
    assert fill.shape == (shape.levels[0].num_voxels,)
    assert 0 <= float(fill.min()) < float(fill.max()) <= 1
    assert torch.equal(seen[0], fill)
    assert torch.equal(seen[-1], torch.full_like(fill, -1))
    for wrong in (1.5, -0.5, torch.nan):
        with pytest.raises(ValueError, match=r"fill must lie in \[0, 1\], or be -1 where it is unknown"):
            pipeline.upsample(bare.with_attributes(fill=torch.full_like(fill, wrong)), QUICK)
    with pytest.raises(ValueError, match=r"levels\[1\].denoiser takes fill, which the VAE of the level before"):
        XCubePipeline([tiny(0), levels[1]])
    with pytest.raises(ValueError, match=r"levels\[0\].denoiser must not take normal, color, fill, label"):
        XCubePipeline([tiny(0, denoiser=unet(0, dense=False, fill=True))])


@pytest.mark.parametrize("thick", [0.9, 1.7, 9.0])
def test_estimated_normals_point_out_of_shells_and_solids(thick: float) -> None:
    grid = Grid.stack([ball(16, 0.3, thick), Grid.empty(1, voxel_size=1 / 16, origin=0.5 / 16), ball(16, 0.3, thick)])
    normal = estimated_normals(grid)
    length = normal.norm(dim=1)
    assert normal.dtype == torch.float32
    assert bool(((length - 1).abs() < 1e-5).logical_or(length == 0).all())
    outward = torch.nn.functional.normalize(grid.ijk + 0.5, dim=1)
    away = (grid.ijk + 0.5).norm(dim=1) > 3.5
    assert float((normal * outward).sum(1)[away].min()) > 0.85
    assert torch.equal(normal[: len(normal) // 2], normal[len(normal) // 2 :])
    assert float(length[(grid.ijk + 0.5).norm(dim=1) < 1].sum()) == 0 or thick < 9
    assert estimated_normals(Grid.empty(2)).shape == (0, 3)


def test_a_pipeline_without_a_box_begins_with_a_grid() -> None:
    pipeline = XCubePipeline([tiny(1), tiny(2)], size=[1.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="the latents of the first level fill no box, so it needs a grid"):
        made(pipeline, 1)
    grid = ball(8, 0.3).crop([-4, -4, -2], [4, 4, 2])
    [shape] = pipeline.upsample(grid, QUICK, level=0)
    assert (shape.first, len(shape.levels)) == (0, 2)
    with pytest.raises(ValueError, match="must lie in the box"):
        pipeline.upsample(ball(8, 0.3), level=0)


def test_a_shape_through_every_vae(three: XCubePipeline) -> None:
    grid = ball(32, 0.25)
    shape = Voxels(grid, {"normal": torch.nn.functional.normalize(grid.ijk + 0.5, dim=1)})
    found = three.reconstruct(shape)
    assert [result.input.grid.voxel_size[0] for result in found] == [1 / 8, 1 / 16, 1 / 32]
    assert found[2].input.grid.same_voxels(grid)
    for result, part in zip(found, three.levels, strict=True):
        expected = reconstruct(result.input, part.vae, part.refiner)
        assert same_bits(result.best, expected.best)
    with pytest.raises(KeyError, match="normal"):
        three.reconstruct(Voxels(grid))


# Folders


def test_a_folder_gives_the_same_shapes(classes: XCubePipeline, three: XCubePipeline, tmp_path: Path) -> None:
    for name, pipeline in (("classes", classes), ("three", three)):
        pipeline.save_pretrained(tmp_path / name)
        again = XCubePipeline.from_pretrained(tmp_path / name)
        assert (again.size, again.resolutions) == (pipeline.size, pipeline.resolutions)
        assert [s.categories for s in again.levels] == [s.categories for s in pipeline.levels]
        assert all_same(made(pipeline, 1), made(again, 1))
        (tmp_path / name / "pipeline.json").unlink()  # the usual names of subfolders say enough
        assert all_same(made(pipeline, 1), made(XCubePipeline.from_pretrained(tmp_path / name), 1))


def test_the_size_and_the_text_model_are_kept(tmp_path: Path) -> None:
    source = TextSource("somewhere", "elsewhere", "inside")
    first = XCubePipeline([tiny(1, denoiser=unet(1, text_channels=TEXT))], size=[2.0, 1.0, 1.0], text=source)
    first.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "pipeline.json").read_text())
    assert index["box"] == [2.0, 1.0, 1.0]
    assert index["text"] == {"model": "somewhere", "tokenizer": "elsewhere", "subfolder": "inside"}
    assert index["levels"] == [{"vae": "vae-0", "denoiser": "denoiser-0"}]
    assert XCubePipeline.from_pretrained(tmp_path).size == (2.0, 1.0, 1.0)


def test_metadata_of_networks_is_kept(tmp_path: Path) -> None:
    metadata = {"vae": {"levels": [8, 16]}, "denoiser": {"seconds": 3, "options": {"drop": 0.1}}}
    sampler = SamplerConfig("ddim", steps=2, spacing="trailing")
    XCubePipeline([tiny(0, metadata=metadata, sampler=sampler), tiny(1)]).save_pretrained(tmp_path)
    levels = XCubePipeline.from_pretrained(tmp_path).levels
    assert [level.sampler for level in levels] == [sampler, SamplerConfig()]
    again = levels[0].metadata
    assert again["vae"] == {"levels": [8, 16]}
    assert again["denoiser"]["seconds"] == 3
    assert again["denoiser"]["options"] == {"drop": 0.1, "categories": [], "dropped": ["category", "text", "words"]}


@pytest.fixture
def saved(two: XCubePipeline, tmp_path: Path) -> Path:
    two.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("index", [True, False])
def test_missing_networks_are_named(saved: Path, index: bool) -> None:
    if not index:
        (saved / "pipeline.json").unlink()
    for name, message in (("denoiser-1", "the denoiser of level 1"), ("vae-0", "the vae of level 0")):
        (saved / name).rename(saved / "away")
        with pytest.raises(ValueError, match=f"lacks {name}, {message}"):
            XCubePipeline.from_pretrained(saved)
        (saved / "away").rename(saved / name)
    (saved / "vae-1" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        XCubePipeline.from_pretrained(saved)


def test_folders_that_are_no_pipelines(saved: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no pipeline: neither pipeline\.json nor vae-0"):
            XCubePipeline.from_pretrained(folder)
    file = saved / "pipeline.json"
    whole = json.loads(file.read_text())
    damaged: dict[str, str] = {
        "{": "is damaged",
        "[]": "must have format 1 and a list of levels",
        json.dumps(whole | {"format": 2}): "must have format 1",
        json.dumps(whole | {"levels": []}): "list of levels",
        json.dumps(whole | {"levels": [{"vae": "../vae-0"}]}): "must name subfolders, got '../vae-0'",
        json.dumps(whole | {"box": [1.0]}): "box must be three edges",
        json.dumps(whole | {"box": [2.0, 1.0, 1.0]}): "size must be that of the box of latents",
        json.dumps(whole | {"text": {"name": "x"}}): "text name a model",
        json.dumps(whole | {"levels": [{"denoiser": "denoiser-0"}]}): "lacks vae-0, the vae of level 0",
        json.dumps(whole | {"levels": whole["levels"][::-1]}): "must have no dense_neck",
    }
    for text, message in damaged.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            XCubePipeline.from_pretrained(saved)


def test_facts_that_sampling_needs(saved: Path) -> None:
    save_pretrained(unet(1), saved / "denoiser-1")
    with pytest.raises(ValueError, match="must have latent_scale and diffusion in its metadata"):
        XCubePipeline.from_pretrained(saved)
    save_pretrained(unet(1), saved / "denoiser-1", latent_scale=2.0, diffusion=DiffusionConfig().to_dict())
    save_pretrained(vae(1), saved / "vae-1", latent_scale=3.0)
    with pytest.raises(ValueError, match=r"must be trained on latents of vae-1, of latent_scale 3\.0, got 2\.0"):
        XCubePipeline.from_pretrained(saved)


# What does not fit


MISFITS: dict[str, Callable[[], list[Any]]] = {
    "levels must hold at least one level": list,
    r"levels\[1\].denoiser must have the latent_channels of the VAE, 2, got 3": lambda: [
        tiny(0), tiny(1, denoiser=unet(1, latent_channels=3))
    ],
    r"levels\[1\].denoiser must not be dense": lambda: [tiny(0), tiny(1, denoiser=unet(1, dense=True))],
    r"levels\[0\].latent_scale must be positive": lambda: [tiny(0, latent_scale=0.0)],
    r"levels\[0\].latent_scale must be positive and finite, got nan": lambda: [tiny(0, latent_scale=float("nan"))],
    r"levels\[0\].categories must have 0 entries": lambda: [tiny(0, categories=("chair",))],
    r"levels\[0\].refiner must have the voxel_size": lambda: [tiny(0, refiner=refiner(1))],
    r"levels\[0\].refiner must take the normal and num_labels": lambda: [tiny(0, refiner=refiner(0, num_labels=2))],
    r"levels\[0\].denoiser must not take normal": lambda: [tiny(0, denoiser=unet(0, normal=True))],
    r"levels\[1\].vae must have no dense_neck": lambda: [tiny(0), tiny(1, vae=vae(1, dense_neck=(4, 4, 4)))],
    r"levels\[1\].vae must have latent voxels of \(0.125, 0.125, 0.125\)": lambda: [tiny(0), tiny(2)],
    r"levels\[1\].denoiser takes normal, which": lambda: [tiny(0, vae=vae(0, normal=False)), tiny(1)],
    r"levels\[1\].denoiser must have num_labels 0": lambda: [tiny(0), tiny(1, denoiser=unet(1, num_labels=2))],
    "levels must take the embeddings of one text model": lambda: [
        tiny(0, denoiser=unet(0, text_channels=4)), tiny(1, denoiser=unet(1, text_channels=6))
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", MISFITS)
def test_networks_that_do_not_fit_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XCubePipeline(MISFITS[message]())


def test_things_of_another_kind(two: XCubePipeline) -> None:
    with pytest.raises(TypeError, match=r"levels\[0\] must be a Level, got VAE"):
        XCubePipeline([vae(0)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"levels\[0\].denoiser must be a UNet, got VAE"):
        XCubePipeline([tiny(0, denoiser=vae(0))])
    with pytest.raises(TypeError, match=r"shape must be a sparsevox\.Grid or Voxels, got list"):
        two.upsample([1])  # type: ignore[arg-type]
    for size, error in (([1.0, 1.0], ValueError), ([1.0, 1.0, -1.0], ValueError), (["a", 1.0, 1.0], TypeError)):
        with pytest.raises(error, match="size must"):
            XCubePipeline([tiny(1)], size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": -1}, ValueError, "n must be at least 1"),
        ({"n": 1.0}, TypeError, "n must be an int, got 1.0"),
        ({"n": "1"}, TypeError, "n must be an int"),
        ({"seed": -1}, ValueError, "seed must not be negative"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"seed": "a"}, TypeError, "seed must be an int"),
        ({"steps": 0}, ValueError, "steps must lie in"),
        ({"steps": 2.0}, TypeError, "steps must be an int"),
        ({"steps": 600}, ValueError, "steps of DDIM must nearly divide 1000"),
        ({"batch_size": 0}, ValueError, "batch_size must lie in"),
        ({"batch_size": 2000}, ValueError, "batch_size must lie in"),
        ({"budget": 0}, ValueError, "budget must be positive"),
        ({"budget": 1e6}, TypeError, "budget must be an int"),
        ({"min_component": -0.1}, ValueError, r"min_component must lie in \[0, 1\), got -0.1"),
        ({"min_component": 1}, ValueError, r"min_component must lie in \[0, 1\), got 1"),
        ({"min_component": float("nan")}, ValueError, "min_component must lie in"),
        ({"min_component": "few"}, TypeError, "min_component must be a number, got 'few'"),
        ({"min_component": True}, TypeError, "min_component must be a number, got True"),
        ({"text": "chair"}, ValueError, "text must be None for a model that takes none, got 'chair'"),
        ({"text": [3]}, TypeError, "text must be a string"),
        ({"guidance": float("nan")}, ValueError, "guidance must be finite"),
        ({"category": "table"}, ValueError, r"one of chair, lamp or a number in \[0, 2\), got 'table'"),
        ({"category": 2}, ValueError, "category must be"),
        ({"category": ["chair"], "n": 2}, ValueError, "a single one, or one for each of 2 shapes, got 1"),
        ({"hooks": {2: None}}, ValueError, r"hooks, conditions and starts must be for levels 0 to 1, got \[2\]"),
        ({"sampler": "flow", "steps": 4}, ValueError, "must not be 'flow'"),
    ],
)
def test_bad_requests(classes: XCubePipeline, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(classes, **({"n": 1} | options))


def test_requests_for_what_a_model_has_not(two: XCubePipeline) -> None:
    with pytest.raises(ValueError, match="category must be None for a model that takes none, got 'chair'"):
        made(two, 1, category="chair")
    with pytest.raises(
        ValueError, match=r"guidance must be 1 for a model that was trained without dropping conditions, got 2\.0"
    ):
        made(two, 1, guidance=2.0)
    with pytest.raises(ValueError, match="numbers must not be negative"):
        two.stream([-1])
    with pytest.raises(ValueError, match="numbers must hold at least one"):
        two.stream([])
    with pytest.raises(TypeError, match="numbers must be an int"):
        two.stream([0.5])  # type: ignore[list-item]


def test_grids_that_do_not_fit(two: XCubePipeline) -> None:
    good = ball(8, 0.3)
    for grid, level, message in (
        (ball(16, 0.3), None, "shape must have a voxel_size of"),
        (ball(16, 0.3), 1, r"shape must have voxel_size \(0.125, 0.125, 0.125\) and an origin"),
        (Grid.from_coords(good.ijk, voxel_size=1 / 8), 1, "shape must have voxel_size"),
        (good, 0, r"level must lie in \[1, 2\), got 0; level 0 starts from noise in a box"),
        (good, 2, r"level must lie in \[1, 2\), got 2"),
        (good.dilate(3), 1, r"shape must lie in the box \(1.0, 1.0, 1.0\) around the origin, got \d+ voxels outside"),
        (Grid.empty(0, voxel_size=1 / 8, origin=1 / 16), 1, "numbers must hold at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            two.upsample(grid, level=level)
    with pytest.raises(TypeError, match="level must be an int"):
        two.upsample(good, level=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="numbers must be one for each of 2 shapes, got 3"):
        two.upsample(Grid.stack([good, good]), numbers=[0, 1, 2])
    with pytest.raises(ValueError, match=r"normal must have shape \[\d+, 3\]"):
        two.upsample(Voxels(good, {"normal": torch.zeros(good.num_voxels)}))
    labeled = XCubePipeline([tiny(0, vae=vae(0, num_labels=2)), tiny(1, denoiser=unet(1, num_labels=2))])
    with pytest.raises(ValueError, match=r"must have the attributes .* that level 1 takes, got none of \['label'\]"):
        labeled.upsample(good)


def test_a_text_that_is_not_there_is_not_embedded(two: XCubePipeline) -> None:
    def never(text: str) -> Text:
        raise AssertionError(text)

    [request] = shape_requests(two.levels, [0], [Voxels(ball(8, 0.3))], SampleOptions(), never)
    assert request.text is None
