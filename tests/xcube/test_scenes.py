"""Outdoor scenes and simulated sweeps: against dense evaluation, marching in small steps, and what classes must be."""

import math
import pickle
from itertools import product

import numpy as np
import pytest
import torch

from xcube.data.hierarchy import Box, build_hierarchy
from xcube.procedural.families.draw import Draw
from xcube.procedural.ground import CURB, ROAD, SIDEWALK, TERRAIN, Ground, draw_ground
from xcube.procedural.lidar import REFLECTANCE, Scanner, first_hits, sweep
from xcube.procedural.poses import Pose
from xcube.procedural.primitives import Ellipsoid, cuboid
from xcube.procedural.scenes import CLASSES, Scene, make_scene, scene_voxels
from xcube.procedural.solids import Union

SMALL = (25.6, 25.6, 6.4)
BOX = Box((16, 64), SMALL)
QUIET = Scanner(beams=8, azimuths=48, lowest=-30, noise=0, drop=0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(3, SMALL)


def test_scenes_hold_every_class() -> None:
    seen: set[int] = set()
    for seed in range(4):
        voxels = scene_voxels(f"scene-{seed:06}", Box((32, 128), (51.2, 51.2, 12.8)))
        labels = set(voxels.attributes["label"].tolist())
        assert {1, 2, 3, 4, 6, 9, 10, 11} <= labels
        assert labels <= set(CLASSES) - {0}
        seen |= labels
        normal = voxels.attributes["normal"]
        assert float((torch.linalg.vector_norm(normal, dim=1) - 1).abs().max()) < 1e-5
        ground = voxels.attributes["label"] == ROAD
        assert float(normal[ground][:, 2].mean()) > 0.95
    assert seen == set(CLASSES) - {0}


def test_voxels_are_those_of_the_whole_volume(scene: Scene) -> None:
    size, shape = BOX.voxel_size(-1), BOX.shape(-1)
    lines = [torch.arange(-(n // 2), n - n // 2 + 1).double() * size for n in shape]
    inside = (scene.solid.distance(torch.cartesian_prod(*lines)) < 0).view([n + 1 for n in shape])
    x, y, z = shape
    eight = torch.stack([inside[i : i + x, j : j + y, k : k + z] for i, j, k in product((0, 1), repeat=3)])
    crossed = (eight.any(0) & ~eight.all(0)).nonzero() - torch.tensor(shape) // 2
    reach = torch.tensor([edge / 2 - BOX.margin for edge in SMALL])
    kept = crossed[((crossed + 0.5) * size).abs().lt(reach).all(1)]
    made = scene_voxels("scene-000003", BOX)
    assert {tuple(row) for row in made.grid.ijk.tolist()} == {tuple(row) for row in kept.tolist()}
    assert [level.num_voxels > 0 for level in build_hierarchy(made, BOX)] == [True, True]


def test_equal_seeds_make_equal_scenes(scene: Scene) -> None:
    assert make_scene(3, SMALL) == scene
    assert make_scene(4, SMALL).solid != scene.solid
    assert pickle.loads(pickle.dumps(scene)) == scene


def test_classes_are_those_of_semantic_kitti() -> None:
    known = {0, 10, 18, 30, 40, 44, 48, 50, 51, 60, 70, 71, 72, 80, 81}
    assert {entry.semantic_kitti for entry in CLASSES.values()} == known
    assert len({entry.name for entry in CLASSES.values()}) == len(CLASSES) == len(REFLECTANCE)
    assert len({entry.color for entry in CLASSES.values()}) == len(CLASSES)


def test_things_stand_on_the_ground_and_off_the_road(scene: Scene) -> None:
    for made in scene.objects:
        (a, b, low), (c, d, high) = made.bounds
        ground = scene.ground.top((a + c) / 2, (b + d) / 2)
        assert low < ground + 0.4
        assert high > ground + 0.3
    x, y, z = scene.sensor
    assert z == pytest.approx(scene.ground.top(x, y) + 1.8)
    assert float(scene.solid.distance(torch.tensor([scene.sensor]))) > 0.3


# The ground


def grounds() -> list[Ground]:
    return [draw_ground(Draw(seed), -2.0) for seed in range(6)]


def test_the_ground_is_never_nearer_than_it_says() -> None:
    points = torch.from_numpy(np.random.default_rng(0).uniform((-20, -20, -4), (20, 20, 2), (4000, 3)))
    ways = torch.from_numpy(np.random.default_rng(1).normal(size=(4000, 3)))
    ways = ways / torch.linalg.vector_norm(ways, dim=1, keepdim=True)
    for ground in grounds():
        distance = ground.distance(points)
        for fraction in (0.3, 0.7, 0.999):
            moved = points + ways * (fraction * distance.abs())[:, None]
            assert torch.equal(ground.distance(moved) < 0, distance < 0)


def test_roads_have_sidewalks_with_curbs() -> None:
    for ground in grounds():
        y, heading = ground.along(40.0)
        slope = math.radians(heading)
        for off, label, raised in (
            (1.0, ROAD, False),
            (ground.half + 0.5 * ground.sidewalk, SIDEWALK, True),
            (ground.half + ground.sidewalk + 0.8, TERRAIN, False),
        ):
            a, b = 40.0 - off * math.sin(slope), y + off * math.cos(slope)
            top = ground.top(a, b)
            at = torch.tensor([[a, b, top - 1e-6], [a, b, top + 1e-6]], dtype=torch.float64)
            assert (ground.distance(at) < 0).tolist() == [True, False]
            assert ground.label(at).tolist() == [label, label]
            height = ground.height(*torch.tensor([[a], [b]], dtype=torch.float64))
            assert top - float(height) == pytest.approx(CURB * raised)


def test_the_ground_moves_up_and_down_only() -> None:
    ground = grounds()[0]
    assert ground.placed(Pose(translation=(0.0, 0.0, 1.5))).level == -0.5
    assert ground.bounds[0] == (-math.inf,) * 3
    with pytest.raises(ValueError, match="pose of the ground must be a translation along z"):
        ground.turned("z", 10)


# Sweeps


def test_rays_meet_what_lies_first() -> None:
    near, far = Ellipsoid((1.0, 1.0, 1.0), pose=Pose(translation=(5.0, 0.0, 0.0))), cuboid((9, -9, -9), (10, 9, 9))
    ways = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0.8, 0.6, 0], [-1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    ranges, part = first_hits(Union((far, near)), torch.zeros(3, dtype=torch.float64), ways, 11.5)
    torch.testing.assert_close(ranges[[0, 2]], torch.tensor([4, 11.25]).double(), atol=0.01, rtol=0)
    assert part[[0, 2]].tolist() == [1, 0]
    assert not bool(ranges[[1, 3, 4]].isfinite().any())
    assert float(first_hits(near, torch.zeros(3).double(), ways, 20.0)[0][0]) == pytest.approx(4, abs=0.01)


def test_a_sweep_is_what_marching_in_small_steps_finds(scene: Scene) -> None:
    origin = torch.tensor(scene.sensor, dtype=torch.float64)
    ways = QUIET.directions()[::7]
    ranges, _ = first_hits(scene.solid, origin, ways, 16.0)
    steps = torch.arange(0, 16, 0.02, dtype=torch.float64)
    inside = (
        scene.solid.distance((origin + steps[None, :, None] * ways[:, None]).reshape(-1, 3)).view(len(ways), -1) < 0
    )
    first = torch.where(inside.any(1), steps[inside.int().argmax(1)], torch.inf)
    # A ray that grazes a surface may come within a hit of it, and no step lie inside of it.
    agree = (ranges - first).abs() <= 0.05
    agree |= ranges.isinf() & first.isinf()
    assert float(agree.double().mean()) > 0.95
    assert int(ranges.isfinite().sum()) > 10


def test_points_lie_on_surfaces_and_carry_them(scene: Scene) -> None:
    points = sweep(scene, QUIET)
    assert len(points) > 150
    assert float(scene.solid.distance(points.positions).abs().max()) < 0.01
    label, normal, intensity = (points.attributes[name] for name in ("label", "normal", "intensity"))
    assert torch.equal(label, scene.solid.label(points.positions))
    ray = points.positions - torch.tensor(scene.sensor)
    assert float(((normal * ray).sum(1) < 0.05 * torch.linalg.vector_norm(ray, dim=1)).double().mean()) > 0.97
    assert intensity.shape == (len(points), 1)
    assert 0 <= float(intensity.min()) < float(intensity.max()) <= 1


def test_noise_losses_and_reach_are_as_asked_for(scene: Scene) -> None:
    clean = sweep(scene, QUIET)
    noisy = sweep(scene, Scanner(beams=8, azimuths=48, lowest=-30, noise=0.05, drop=0), seed=1)
    error = scene.solid.distance(noisy.positions).abs()
    assert 0.01 < float(error.mean()) < 0.05
    fewer = sweep(scene, Scanner(beams=8, azimuths=48, lowest=-30, drop=0.5))
    assert 0.3 < len(fewer) / len(clean) < 0.7
    assert len(sweep(scene, Scanner(beams=8, azimuths=48, lowest=-30, drop=1))) == 0
    short = sweep(scene, Scanner(beams=8, azimuths=48, lowest=-30, reach=5.0))
    assert 0 < len(short) < len(clean)
    assert float(torch.linalg.vector_norm(short.positions - torch.tensor(scene.sensor), dim=1).max()) <= 5


def test_equal_seeds_make_equal_sweeps(scene: Scene) -> None:
    scanner = Scanner(beams=4, azimuths=32)
    first, again, other = (sweep(scene, scanner, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(first.attributes["intensity"], again.attributes["intensity"])
    assert first.positions.shape != other.positions.shape or not torch.equal(first.positions, other.positions)


def test_a_scanner_looks_around() -> None:
    ways = Scanner(beams=3, azimuths=4, lowest=-30, highest=30).directions()
    torch.testing.assert_close(torch.linalg.vector_norm(ways, dim=1), torch.ones(12).double())
    torch.testing.assert_close(ways[4:8], torch.tensor([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]]).double())
    assert float(ways[0, 2]) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: make_scene(-1), "seed must not be negative"),
        (lambda: make_scene(0, (10.0, 30.0, 6.0)), "size must be at least"),
        (lambda: scene_voxels("scene-1", BOX), "name must be 'scene-'"),
        (lambda: scene_voxels("chair-000001", BOX), "name must be 'scene-'"),
        (lambda: Scanner(beams=0), "beams must be at least 1"),
        (lambda: Scanner(azimuths=0), "azimuths must be at least 1"),
        (lambda: Scanner(lowest=10, highest=0), "lowest and highest must rise"),
        (lambda: Scanner(drop=1.5), "reach must be positive"),
        (lambda: Scanner(reach=0), "reach must be positive"),
        (lambda: sweep(make_scene(0), position=(0.0, 0.0, -6.0)), "position must lie in free space"),
    ],
)
def test_bad_arguments_are_named(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_seeds_are_integers() -> None:
    with pytest.raises(TypeError, match="seed must be an int"):
        make_scene("1")  # type: ignore[arg-type]
