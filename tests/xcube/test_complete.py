"""Completion: what is known, that it is kept, that shells stay closed, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.io import from_trimesh, load_voxels, save_mesh, save_voxels
from tests.xcube.cascades import tiny, unet, vae, watched
from tests.xcube.test_edit import SIZE, as_grid, as_set, boundary, cube, shell
from xcube.cli import main
from xcube.data.hierarchy import Box
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, keep_known_latents, sample_latents
from xcube.geometry.solids import solid
from xcube.pipeline.complete import joined_with_observation, known_latents
from xcube.pipeline.observation import observation
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.procedural.shapes import FAMILIES, shape_voxels

pytest.importorskip("scipy", reason="finds the inside")
trimesh = pytest.importorskip("trimesh", reason="makes the meshes")

BOX = Box((16, 64))
QUIET = SampleOptions(quiet=True)
HALF: Any = ((-1, -1, -1), (0, 1, 1))


def outward(places: set[tuple[int, int, int]], whole: set[tuple[int, int, int]]) -> Voxels:
    """Voxels whose normals are the mean of the directions to neighbors outside of a solid."""
    grid = as_grid(places)
    normals = torch.zeros(grid.num_voxels, 3)
    for row, (x, y, z) in enumerate(grid.ijk.tolist()):
        for axis in range(3):
            for side in (-1, 1):
                other = [x, y, z]
                other[axis] += side
                normals[row, axis] += side * (tuple(other) not in whole)
    return Voxels(grid, {"normal": torch.nn.functional.normalize(normals, dim=1)})


def half_of_a_cube() -> Voxels:
    """The voxels with x < 0 of the shell of a cube from -10 to 9."""
    whole = cube(-10, 10)
    return outward({place for place in boundary(whole) if place[0] < 0}, whole)


boxes = st.lists(st.tuples(*[st.integers(-9, 5)] * 3, *[st.integers(2, 8)] * 3), min_size=1, max_size=3)


def union(parts: list[tuple[int, ...]]) -> set[tuple[int, int, int]]:
    ranges = [(range(a, a + i), range(b, b + j), range(c, c + k)) for a, b, c, i, j, k in parts]
    return {(x, y, z) for xs, ys, zs in ranges for x in xs for y in ys for z in zs}


@given(boxes, boxes, st.integers(-6, 6))
@settings(max_examples=40, deadline=None)
def test_joining_keeps_the_observation_and_the_solid(
    old: list[tuple[int, ...]], new: list[tuple[int, ...]], cut: int
) -> None:
    before, made = union(old), union(new)
    seen = {place for place in boundary(before) if place[0] < cut}
    if not seen:
        return
    known: Any = ((-1, -1, -1), (cut * SIZE, 1, 1))
    found = observation(outward(seen, before), BOX, known=[known])
    result = joined_with_observation(found, 1, shell(made))
    places = as_set(result.grid)
    assert seen <= places
    rows = result.grid.index(found.full[1].grid.coords)
    assert torch.equal(result.attributes["normal"][rows], found.full[1].attributes["normal"])
    # The solid is generated beyond the cut, and known before it.
    inner = {place for place in before if place[0] < cut}
    expected = {place for place in made if place[0] >= cut} | seen | as_set(found.inside[1])
    assert as_set(found.inside[1]) <= inner
    assert as_set(solid(result.grid)) >= expected
    assert {place for place in as_set(solid(result.grid)) if place[0] < cut} <= as_set(solid(as_grid(expected)))


def test_the_denoiser_sees_the_observation() -> None:
    pipeline = XCubePipeline([tiny(0, denoiser=unet(0, observed=8)), tiny(1)])
    part = half_of_a_cube()
    grid = part.grid.coarsen(4)
    part = Voxels(grid, {"normal": torch.ones(grid.num_voxels, 3)})
    calls: list[torch.Tensor] = []
    options = SampleOptions(steps=2, quiet=True)
    with watched(pipeline.levels[0].denoiser, lambda args: calls.append(args[2].observed)):
        made = pipeline.complete(part, options, known=HALF, numbers=(0, 1))
        pipeline.sample(1, options)
    assert all((part.grid - sample.finest.grid).num_voxels == 0 for sample in made)
    seen, nothing = calls[0], calls[-1]
    assert (nothing == 0).all()
    assert torch.equal(seen[:64], seen[64:])
    assert {float(value) for value in seen.unique()} == {-1.0, 0.0, 1.0}
    coarse = observation(part, Box((8, 16)), known=[HALF])
    assert int((seen[:64] == 1).sum()) == coarse.full[0].num_voxels
    assert int((seen[:64] == -1).sum()) == coarse.empty[0].num_voxels
    # With a denoiser that can do without, guidance by the observation: a second call per step, without it.
    dropped = tiny(0, denoiser=unet(0, observed=8), dropped=("observed",))
    calls.clear()
    with watched(dropped.denoiser, lambda args: calls.append(args[2].observed)):
        XCubePipeline([dropped, tiny(1)]).complete(part, options, known=HALF, numbers=(0,))
    assert [bool(call.any()) for call in calls] == [True, False, True, False]
    for pipeline, changed in (
        (XCubePipeline([dropped, tiny(1)]), replace(options, guidance=1.0)),
        (XCubePipeline([replace(dropped, dropped=()), tiny(1)]), options),
    ):
        calls.clear()
        with watched(dropped.denoiser, lambda args: calls.append(args[2].observed)):
            pipeline.complete(part, changed, known=HALF, numbers=(0,))
        assert [bool(call.any()) for call in calls] == [True, True]
    # A level that has a guidance of its own keeps it.
    weights: list[float] = []
    own = replace(dropped, sampler=SamplerConfig(guidance=1.5))
    with pytest.MonkeyPatch.context() as patch:
        lerp = torch.lerp

        def weighed(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
            weights.append(weight)
            return lerp(a, b, weight)

        patch.setattr(torch, "lerp", weighed)
        for level in (own, dropped):
            XCubePipeline([level, tiny(1)]).complete(part, options, known=HALF, numbers=(0,))
    assert weights == [1.5, 1.5, 3.0, 3.0]
    # Where solid fractions are known, they are the states of full voxels.
    solid_level = tiny(0, vae=vae(0, fill=True), denoiser=unet(0, observed=8))
    calls.clear()
    block = outward(boundary(cube(-5, 6)), cube(-5, 6))
    whole = Voxels(Grid.from_coords(block.grid.ijk, voxel_size=1 / 16, origin=1 / 32), block.attributes)
    with watched(solid_level.denoiser, lambda args: calls.append(args[2].observed)):
        XCubePipeline([solid_level, tiny(1)]).complete(whole, options, unknown=HALF, numbers=(0,))
    given = calls[0]
    assert set(given[given <= 0].tolist()) == {-1.0, 0.0}
    assert bool(((given[given > 0] >= 0.5) & (given[given > 0] <= 1)).all())
    assert len(given[given > 0].unique()) > 2
    with pytest.raises(ValueError, match="method must be one of trained, resampling, got 'guess'"):
        pipeline.complete(part, options, method="guess")  # type: ignore[arg-type]
    plain = XCubePipeline([tiny(0), tiny(1)])
    with pytest.raises(ValueError, match="method must be 'resampling' for a denoiser that takes no observations"):
        plain.complete(part, options, method="trained")


@pytest.fixture(scope="module")
def pipeline() -> XCubePipeline:
    return XCubePipeline.from_pretrained()


@pytest.mark.parametrize("name", sorted(FAMILIES)[:4])
@pytest.mark.parametrize("method", ["resampling", None])
def test_halves_of_shapes(pipeline: XCubePipeline, name: str, method: Any) -> None:
    shape = shape_voxels(f"{name}-900007", BOX)
    low, high = (bound[0].double() / 64 for bound in shape.grid.bounds())
    middle = float((low + high)[0]) / 2
    part = shape.prune(shape.grid.to_world(shape.grid.ijk.double())[:, 0] < middle)
    options = QUIET.with_changes(category=name)
    known: Any = ((-1, -1, -1), (middle, 1, 1))
    first, second = pipeline.complete(part, options, known=known, method=method, numbers=(0, 1))
    for made in (first, second):
        rows = made.finest.grid.index(part.grid.coords)
        assert (rows >= 0).all()
        assert torch.equal(made.finest.attributes["normal"][rows], part.attributes["normal"])
        beyond = made.finest.grid - part.grid
        assert beyond.num_voxels > 50
        # What was known to be empty is no part of the shell, but for the edge where the solid ends.
        wrong = beyond.to_world(beyond.ijk.double())[:, 0] < middle - 1.5 / 64
        assert float(wrong.double().mean()) < 0.02
    assert not first.finest.grid.same_voxels(second.finest.grid)
    [again] = pipeline.complete(part, options, known=known, method=method, numbers=(0,))
    overlap = (first.finest.grid & again.finest.grid).num_voxels / (first.finest.grid | again.finest.grid).num_voxels
    assert overlap > 0.9  # other batches round differently


def test_known_latents() -> None:
    """All latents of a box whose voxels are known; on sparse grids, only those that no unknown one is next to."""
    dense, sparse = tiny(0), tiny(1)
    unknown = Grid.from_coords(torch.tensor([[3, 0, 0]]), voxel_size=1 / 8, origin=1 / 16)
    box = Grid.full((-2, -2, -2), (2, 2, 2), batch_size=2, voxel_size=1 / 4, origin=1 / 8)
    found = known_latents(dense, unknown, box)
    assert box.coords[~found].tolist() == [[0, 1, 0, 0], [1, 1, 0, 0]]
    unknown = Grid.from_coords(torch.tensor([[3, 0, 0]]), voxel_size=1 / 16, origin=1 / 32)
    grid = Grid.full((-2, -2, -2), (3, 3, 3), batch_size=2, voxel_size=1 / 8, origin=1 / 16)
    found = known_latents(sparse, unknown, grid)
    wrong = {(x, y, z) for x in (0, 1, 2) for y in (-1, 0, 1) for z in (-1, 0, 1)}
    assert {tuple(place) for place in grid.ijk[~found].tolist()} == wrong
    assert int((~found).sum()) == 2 * len(wrong)


def test_resampling_keeps_the_known_latents(pipeline: XCubePipeline) -> None:
    """Each step is taken four times; in each, the known latents are those of the shape with noise."""
    shape = shape_voxels("table-900003", BOX)
    part = shape.prune(shape.grid.ijk[:, 0] < 0)
    first = pipeline.levels[0]
    seen = observation(part, BOX, known=[HALF])
    box = Grid.full((-2, -2, -2), (2, 2, 2), voxel_size=1 / 4, origin=1 / 8)
    known = known_latents(first, seen.unknown[0], box)
    assert int(known.sum()) == 16
    calls: list[tuple[torch.Tensor, float]] = []
    with watched(first.denoiser, lambda args: calls.append((args[0].feats.clone(), float(args[1][0])))):
        pipeline.complete(part, QUIET, known=HALF, method="resampling", numbers=(0,))
    assert len(calls) == 4 * 25
    full = seen.full[0].with_attributes(fill=seen.full[0].attributes["fill"].clamp(min=0))
    with torch.no_grad():
        posterior = first.vae.encode(full)
    latents = posterior.mean[posterior.grid.index(box.coords)] * first.latent_scale
    for x, t in calls:
        noise = (x[known] - (1 - t / 1000) * latents[known]) / max(t / 1000, 1e-3)
        assert 0.8 < float(noise.std()) < 1.2  # 128 numbers
        # The other latents have as much noise as the sampler expects: it is added back for each repeat.
        rest = x[~known]
        if t > 900:
            assert 0.85 < float(rest.std()) < 1.15
    # Without known latents there is nothing to resample.
    for options in ({}, {"sensor": (-2.0, 0.0, 0.0)}):
        with pytest.raises(ValueError, match=r"partial must have latent voxels of the size .* of which all is known"):
            pipeline.complete(part, QUIET, method="resampling", **options)  # type: ignore[arg-type]


def test_finer_levels_keep_the_known_latents(pipeline: XCubePipeline) -> None:
    shape = shape_voxels("table-900003", BOX)
    part = shape.prune(shape.grid.ijk[:, 0] < 0)
    seen: list[tuple[Grid, torch.Tensor]] = []
    user: list[int] = []

    def see(args: Any) -> None:
        seen.append((args[0].grid, args[0].feats.clone()))

    def own(level: int) -> Any:
        return lambda grid, numbers: user.append(level)

    options = QUIET.with_changes(hooks={0: own(0), 1: own(1)}, category=["table", "chair", "table"], batch_size=2)
    with watched(pipeline.levels[1].denoiser, see):
        pipeline.complete(part, options, known=HALF, method="resampling", numbers=(0, 1, 2))
    assert user == [0, 1, 0, 1] or sorted(user) == [0, 0, 1, 1]
    level = pipeline.levels[1]
    with torch.no_grad():
        posterior = level.vae.encode(part)
    for grid, feats in seen:
        known = known_latents(level, observation(part, BOX, known=[HALF]).unknown[1], grid)
        rows = posterior.grid.index(torch.cat([0 * grid.coords[:, :1], grid.coords[:, 1:]], 1))
        known &= rows >= 0
        assert int(known.sum()) > 20
        scale = level.objective.schedule.alphas_cumprod[999] ** 0.5
        noise = feats[known] - scale * posterior.mean[rows[known]] * level.latent_scale
        other = level.objective.schedule.alphas_cumprod[999]
        assert float(noise.std()) == pytest.approx(float((1 - other) ** 0.5), rel=0.1)


def test_repeated_steps() -> None:
    """With as many latents known, repeats bring the unknown ones closer to what fits: here, the known value."""
    flow = Diffusion(DiffusionConfig(prediction="flow"))
    grid = Grid.full((-2, -2, -2), (2, 2, 2), batch_size=1, voxel_size=1 / 4, origin=1 / 8)
    known = torch.arange(grid.num_voxels) % 4 > 0
    latents = SparseTensor(grid, torch.full((grid.num_voxels, 1), 2.0))

    def smooth(x: SparseTensor, t: torch.Tensor, conditions: object) -> SparseTensor:
        """Predicts that all latents are the mean."""
        rest = (t / 1000).clamp(min=1e-3)[0]
        return x.map(lambda z: (z - z.mean() / max(1e-3, float(1 - rest))) / rest)

    errors = []
    for repeats in (1, 8):
        generator = torch.Generator().manual_seed(0)

        def noise(grid: Grid, channels: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(grid.num_voxels, channels, generator=generator)

        hook = keep_known_latents(flow, latents, known, noise(grid, 1))
        sampler = SamplerConfig(sampler="flow", steps=10, repeats=repeats)
        found = sample_latents(smooth, grid, 1, noise, diffusion=flow, sampler=sampler, hook=hook)
        assert torch.equal(found.feats[known], latents.feats[known])
        errors.append(float((found.feats[~known] - 2).abs().mean()))
    assert errors[1] < errors[0]
    for wrong in ({"repeats": 0}, {"repeats": 2, "sampler": "dpm++"}):
        with pytest.raises(ValueError, match="repeats must be at least 1, and 1 for dpm"):
            SamplerConfig(**wrong)


@pytest.mark.parametrize("prediction", ["flow", "v"])
@pytest.mark.parametrize(("before", "after"), [(None, 300.0), (200.0, 700.0), (400.0, 999.0)])
def test_noise_that_is_added_back(prediction: Any, before: float | None, after: float) -> None:
    """Adding noise in two steps has the mean and the variance of one step."""
    diffusion = Diffusion(DiffusionConfig(prediction=prediction))
    grid = Grid.full((0, 0, 0), (40, 40, 40), voxel_size=1.0)
    first, second = (torch.randn(grid.num_voxels, 1, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    start = SparseTensor(grid, torch.full((grid.num_voxels, 1), 3.0))
    to_time = (lambda t: t) if diffusion.is_flow else round
    x = start if before is None else diffusion.add_noise(start, first, to_time(before))
    found = diffusion.add_noise_back(x, second, before, after).feats
    expected = diffusion.add_noise(start, first, to_time(after)).feats
    assert float(found.mean() - expected.mean()) == pytest.approx(0, abs=0.02)
    assert float(found.std()) == pytest.approx(float(expected.std()), rel=0.02)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"known": HALF, "unknown": HALF}, ValueError, "known must be empty if there are unknown parts, got 1 and 1"),
        ({"unknown": ((-1, -1, -1), (1, 1, 1))}, ValueError, "partial must have voxels outside of the unknown parts"),
        ({"unknown": ((0.6, 0.6, 0.6), (0.9, 0.9, 0.9))}, ValueError, r"unknown\[0\] must overlap the box"),
        ({"known": ((5, 5, 5), (6, 6, 6))}, ValueError, r"known\[0\] must overlap the box"),
        ({"sensor": (1, 2)}, ValueError, "sensor must"),
        ({"sensor": "abc"}, TypeError, "sensor must"),
        ({"sensor": (1.0, 2.0, math.nan)}, ValueError, "sensor must"),
        ({"known": HALF, "category": "spaceship"}, ValueError, "category must be one of"),
        (
            {"known": HALF, "text": "a dragon"},
            ValueError,
            "text must consist of words that the model knows, got 'dragon'",
        ),
        ({"known": HALF, "hooks": {7: None}}, ValueError, "hooks, conditions and starts must be for levels 0 to 1"),
        ({"known": "chair"}, TypeError, r"known\[0\] must be the two corners"),
    ],
)
def test_what_is_refused(pipeline: XCubePipeline, options: Any, error: type[Exception], message: str) -> None:
    part = half_of_a_cube()
    sampling = {name: options[name] for name in ("category", "text", "hooks") if name in options}
    rest = {name: value for name, value in options.items() if name not in sampling}
    with pytest.raises(error, match=message):
        pipeline.complete(part, QUIET.with_changes(**sampling), **rest)
    with pytest.raises(TypeError, match="partial must be Voxels or a Sample, got Grid"):
        pipeline.complete(part.grid)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="partial must have normals, got none"):
        pipeline.complete(Voxels(part.grid), QUIET)
    other = Grid.from_coords(part.grid.coords, voxel_size=1 / 128, origin=1 / 256)
    with pytest.raises(ValueError, match="voxel"):
        pipeline.complete(Voxels(other, part.attributes), QUIET)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("jsonargparse", "matplotlib"):
        pytest.importorskip(package, reason="the command line")
    shape = shape_voxels("table-900003", BOX)
    save_voxels(shape, tmp_path / "table.npz")
    words = ["complete", str(tmp_path / "table.npz"), "--unknown", "x=0.05:", "--count", "2", "--quiet"]
    assert main([*words, "--category", "table", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("2 shapes generated\n")
    keep = shape.grid.to_world(shape.grid.ijk.double())[:, 0] < 0.05 - 1 / 64
    for number in range(2):
        made = load_voxels(tmp_path / "out" / f"shape-00000{number}.npz")
        assert (shape.prune(keep).grid - made.grid).num_voxels == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["unknown"] == ["x=0.05:"]
    assert "partial" in (tmp_path / "out" / "index.html").read_text()
    # From a mesh, seen from one side.
    save_mesh(from_trimesh(trimesh.creation.box((0.3, 0.3, 0.3))), tmp_path / "box.ply")
    words = [
        "complete",
        str(tmp_path / "box.ply"),
        "--known",
        "x=:0.05",
        "--sensor",
        "2,0,0",
        "--count",
        "1",
        "--quiet",
    ]
    assert main([*words, "--out", str(tmp_path / "seen")]) == 0
    # The shapes depend on all of these.
    for change in (["--sensor", "2,1,0"], ["--known", "x=:0.1"], ["--method", "resampling"]):
        capsys.readouterr()
        assert main([*words, *change, "--out", str(tmp_path / "seen")]) == 2
        assert f"holds shapes with other settings: {change[0][2:]}" in capsys.readouterr().err
    for wrong, message in (
        (["--sensor", "1,2"], "sensor must"),
        (["--known", "x=0.3:0.2"], "known[0] must have a lower corner below the upper one"),
        (["--method", "trained"], "method must be 'resampling' for a denoiser that takes no observations"),
    ):
        assert main([*words[:2], *wrong, "--quiet", "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
    save_mesh(from_trimesh(trimesh.creation.box((3, 3, 3))), tmp_path / "large.ply")
    assert main(["complete", str(tmp_path / "large.ply"), "--quiet", "--out", str(tmp_path / "no")]) == 2
    assert "outside" in capsys.readouterr().err
