"""Hierarchies of shapes, against the enclosing rule written in NumPy; and the trees of an autoencoder."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparsevox as sv
from sparsevox import Grid, Voxels
from sparsevox.io import fit, from_trimesh, load_mesh
from xcube.data import Box, Source, build, build_hierarchy
from xcube.data.dataset import read_card
from xcube.data.hierarchy import as_box
from xcube.geometry.pyramid import enclosing_coarsen, pooling_tree

trimesh = pytest.importorskip("trimesh", reason="shapes to voxelize")

LEVELS = (8, 32, 64)


def rows(grid):
    return set(map(tuple, grid.ijk.tolist()))


def enclosing(ijk, fine_size, coarse_size):
    """The voxels whose centers enclose the centers of others, with the corners of all of them at the origin."""
    centers = (np.asarray(ijk, np.float64) + 0.5) * fine_size
    lowest = np.floor((centers - coarse_size / 2) / coarse_size).astype(int)
    corners = np.stack(np.meshgrid((0, 1), (0, 1), (0, 1)), -1).reshape(-1, 3)
    return set(map(tuple, (lowest[:, None] + corners).reshape(-1, 3).tolist()))


def made(name):
    """Closed, open and non-manifold meshes, each inside a box of edge 1."""
    if name == "sphere":
        return trimesh.creation.icosphere(3, radius=0.4)
    if name == "torus":
        return trimesh.creation.torus(0.3, 0.1)
    if name == "hemisphere":
        ball = trimesh.creation.icosphere(3, radius=0.4)
        ball.update_faces(ball.triangles_center[:, 2] > 0)
        return ball
    a, b = trimesh.creation.box((0.5, 0.5, 0.5)), trimesh.creation.box((0.5, 0.5, 0.25))
    b.apply_translation((0.1, 0.05, -0.2))
    return trimesh.util.concatenate([a, b])  # two solids that pass through each other


def read(name):
    return fit(load_mesh(Path(__file__).parents[1] / "meshes" / f"{name}.obj"), -0.4, 0.4)


def shape(name):
    return read(name) if name in REAL else from_trimesh(made(name))


REAL = ("bottle", "chair", "key")
EVERY = (*REAL, "sphere", "torus", "hemisphere", "crossing")


# --- Levels


@pytest.mark.parametrize("name", EVERY)
def test_a_level_is_the_latent_grid_of_the_next(name):
    box = Box(LEVELS)
    levels = build_hierarchy(shape(name), box, samples=20_000)
    assert [level.grid.voxel_size[0] for level in levels] == [1 / 8, 1 / 32, 1 / 64]
    assert [level.grid.origin[0] for level in levels] == [1 / 16, 1 / 64, 1 / 128]
    for (coarse, fine), halvings in zip(itertools.pairwise(levels), (2, 1), strict=True):
        latent = pooling_tree(fine.grid, [(2, 2, 2)] * halvings, "latent")[-1]  # of the autoencoder of the fine level
        assert latent.same_voxels(coarse.grid)
        assert latent.voxel_size == coarse.grid.voxel_size
        assert rows(coarse.grid) == enclosing(fine.grid.ijk, fine.grid.voxel_size[0], coarse.grid.voxel_size[0])


@pytest.mark.parametrize("name", EVERY)
def test_the_finest_level_touches_the_surface_and_normals_look_out_of_it(name):
    mesh = shape(name)
    levels = build_hierarchy(mesh, Box(LEVELS), samples=50_000)
    fine = levels[-1]
    surface = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    points, faces = trimesh.sample.sample_surface(surface, 2000, seed=1)
    row = fine.grid.index(torch.from_numpy(np.floor(points * 64).astype(np.int64)))
    assert bool((row >= 0).all())
    normal = fine.attributes["normal"]
    assert normal.shape == (fine.num_voxels, 3)
    length = torch.linalg.vector_norm(normal, dim=1)
    assert float((length < 1 + 1e-6).float().mean()) == 1
    # A voxel on an edge, or between two sheets that face each other, looks neither way.
    agree = (normal[row] * torch.from_numpy(surface.face_normals[faces])).sum(1)
    assert float((agree > 0.6).float().mean()) > 0.9


def test_normals_of_a_sphere_are_radial_at_every_level():
    for level in build_hierarchy(shape("sphere"), Box((8, 32)), samples=50_000):
        radial = torch.nn.functional.normalize(level.grid.to_world(level.grid.ijk), dim=1)
        length = torch.linalg.vector_norm(level.attributes["normal"], dim=1)
        reached = length > 0  # coarse voxels at the outside enclose centers of fine ones, but no point
        assert float(reached.float().mean()) > 0.9
        assert float((length[reached] - 1).abs().median()) < 1e-3
        assert float((level.attributes["normal"] * radial).sum(1)[reached].mean()) > 0.97


@pytest.mark.parametrize("levels", [(16,), (4, 8), (4, 8, 16), (2, 4, 8, 16), (4, 32, 64), (2, 16, 128)])
@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (2.0, 2.0, 1.0)])
def test_no_level_leaves_the_box_up_to_its_margin(levels, size):
    box = Box(levels, size) if levels[0] > 2 else Box(levels)
    voxel = box.voxel_size(-1)
    upper = [round((edge / 2 - box.margin) / voxel) for edge in box.size]
    full = sv.Grid.full([-u for u in upper], upper, voxel_size=voxel, origin=voxel / 2)
    grids = [level.grid for level in build_hierarchy(sv.Voxels(full), box)]
    for number, grid in enumerate(grids):
        low, high = (bound[0].tolist() for bound in grid.bounds())
        half = [edge // 2 for edge in box.shape(number)]
        assert all(-h <= a < b <= h for h, a, b in zip(half, low, high, strict=True))
    # No more than the margin is given away: the coarsest level reaches the border, or one voxel more would leave it.
    if len(levels) > 1:
        wider = sv.Grid.full([-u - 1 for u in upper], [u + 1 for u in upper], voxel_size=voxel, origin=voxel / 2)
        for number in reversed(range(len(levels) - 1)):
            wider = enclosing_coarsen(wider, levels[number + 1] // levels[number])
        assert int(wider.bounds()[1].max()) > box.shape(0)[0] // 2


# --- Attributes


def test_attributes_of_points_reach_every_level():
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(5000, 3, generator=generator, dtype=torch.float64) * 0.8 - 0.4
    right = positions[:, 0] > 0
    points = sv.Points(positions, {"label": right.int() * 7, "color": torch.stack([right] * 3, 1).float()})
    levels = build_hierarchy(points, Box((8, 16)))
    assert rows(levels[1].grid) == set(map(tuple, np.floor(positions.numpy() * 16).astype(int).tolist()))
    for level in levels:
        assert set(level.attributes) == {"label", "color"}
        x = level.grid.ijk[:, 0]
        away = (x < -1) | (x > 0)  # two voxels around the border see both sides
        expected = (x >= 0).int() * 7
        assert torch.equal(level.attributes["label"][away], expected[away])
        assert bool((level.attributes["color"][away] == (expected[away, None] > 0)).all())


def test_voxels_keep_the_finest_level_and_its_attributes():
    box = Box((4, 8), (2.0, 2.0, 1.0))
    grid = sv.Grid.from_coords(torch.tensor([[0, 0, 0], [-1, 2, -1], [1, 1, 0]]), voxel_size=0.25, origin=0.125)
    label = torch.tensor([3, 1, 2])
    levels = build_hierarchy(sv.Voxels(grid, {"label": label}), box)
    assert levels[1].grid.same_voxels(grid)
    assert torch.equal(levels[1].attributes["label"], label)
    assert set(levels[0].attributes["label"].tolist()) <= {1, 2, 3}


def test_fill_is_the_solid_fraction_at_the_next_finer_level():
    ball = shape("sphere")
    levels = build_hierarchy(ball, Box((8, 16, 64)), samples=20_000, fill=True)
    assert torch.equal(levels[-1].attributes["fill"], torch.ones(levels[-1].num_voxels))
    radius = float(ball.vertices.norm(dim=1).max())
    for coarse, fine in itertools.pairwise(levels):
        fill, size = coarse.attributes["fill"], coarse.grid.voxel_size[0]
        assert fill.dtype == torch.float32
        factor = round(size / fine.grid.voxel_size[0])
        # The distances of the finer voxels that a voxel covers: early dilation adds up to two voxels to the ball.
        steps = torch.cartesian_prod(*[(torch.arange(factor) + 0.5) / factor - 0.5] * 3) * size
        distance = (coarse.grid.to_world(coarse.grid.ijk)[:, None] + steps).norm(dim=2)
        grown = radius + 2 * 3**0.5 * fine.grid.voxel_size[0]
        low, high = ((distance <= bound).double().mean(1) for bound in (radius, grown))
        assert bool(((fill >= low - 1e-6) & (fill <= high + 1e-6)).all())
        assert 0 == float(fill.min()) < float(fill.max()) == 1
    assert all("fill" not in level.attributes for level in build_hierarchy(ball, Box((8, 16)), samples=100))


def test_equal_seeds_give_equal_bits_and_others_do_not():
    def normals(seed):
        return build_hierarchy(shape("torus"), Box((8, 16)), samples=500, seed=seed)[0].attributes["normal"]

    assert torch.equal(normals(1), normals(1))
    assert not torch.equal(normals(1), normals(2))


# --- What does not fit


@pytest.mark.parametrize("kind", ["mesh", "points", "voxels"])
def test_outside(kind):
    mesh = from_trimesh(trimesh.creation.icosphere(2, radius=0.5))
    size = 1 / 16
    given_: Any = {
        "mesh": mesh,
        "points": sv.Points(mesh.vertices),
        "voxels": sv.Voxels(sv.Grid.from_mesh(mesh.vertices, mesh.faces, voxel_size=size, origin=size / 2)),
    }[kind]
    box = Box((4, 16))
    with pytest.raises(
        ValueError, match=r"shape must keep a distance of 0.125 from the border .* outside='clip' crops"
    ):
        build_hierarchy(given_, box)
    clipped = build_hierarchy(given_, box, outside="clip", samples=2000)[1].grid
    assert clipped.num_voxels
    assert all(-6 <= c < 6 for voxel in rows(clipped) for c in voxel)
    if kind == "voxels":
        with pytest.raises(ValueError, match="from the border"):
            build_hierarchy(given_, box, outside="rescale")
        return
    for target in (box, Box((4, 16, 64)), Box((16,)), Box((4, 16), (1.0, 1.0, 0.5))):
        fine = build_hierarchy(given_, target, outside="rescale", samples=2000)[-1].grid
        low, high = fine.bounds()
        reach = min(target.size) / 2 - target.margin
        assert reach - 2.1 * target.voxel_size(-1) <= float(high.max()) * target.voxel_size(-1) <= reach
        assert float(low.min()) * target.voxel_size(-1) >= -max(target.size) / 2 + target.margin


def crossing_triangles():
    """Some within the box, some half, some around it, some far away."""
    generator = torch.Generator().manual_seed(5)
    centers = torch.rand(40, 1, 3, generator=generator, dtype=torch.float64) - 0.5
    corners = centers + 0.3 * torch.randn(40, 3, 3, generator=generator, dtype=torch.float64)
    wide = torch.tensor([[[-9.0, 0.1, -9.0], [9.0, 0.2, -9.0], [0.0, 0.15, 9.0]]], dtype=torch.float64)
    return torch.cat([corners, corners + 3, wide])


def test_clipping_leaves_what_the_whole_shape_has_in_the_box():
    corners = crossing_triangles()
    part = torch.arange(len(corners)).to(torch.int32)
    mesh = sv.Mesh(corners.reshape(-1, 3), torch.arange(3 * len(corners)).reshape(-1, 3), {}, {"label": part})
    size = 1 / 16
    whole = sv.Grid.from_mesh(mesh.vertices, mesh.faces, voxel_size=size, origin=size / 2).crop(-6, 6)
    fine = build_hierarchy(mesh, Box((4, 16)), outside="clip", samples=5000)[1]
    assert fine.grid.same_voxels(whole)
    assert fine.attributes["label"].max() == 80  # the wide one is there, those far away are not
    assert not torch.isin(torch.arange(40, 80), fine.attributes["label"]).any()
    points = sv.Points(corners.reshape(-1, 3))
    expected = sv.Grid.from_points(points.positions, voxel_size=size, origin=size / 2).crop(-6, 6)
    assert build_hierarchy(points, Box((4, 16)), outside="clip")[1].grid.same_voxels(expected)


@pytest.mark.parametrize("outside", ["error", "clip", "rescale"])
def test_a_shape_far_too_large_takes_no_memory(outside):
    """At this size its voxels would fill any machine."""
    ball = from_trimesh(trimesh.creation.icosphere(2, radius=5e4))
    ball = ball.transform(lambda p: p + torch.tensor([5e4, 0.0, 0.0]))
    if outside == "error":
        with pytest.raises(
            ValueError, match=r"shape must keep a distance of 0.125 .*, got one from \(0.0, -50000.0, -50000.0\)"
        ):
            build_hierarchy(ball, Box((4, 16)))
        return
    levels = build_hierarchy(ball, Box((4, 16)), outside=outside, samples=1000)
    assert 0 < levels[1].num_voxels < 16**3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            sv.Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)),
            "shape must have voxels inside the box, got Mesh",
        ),
        (sv.Points(torch.zeros(0, 3)), "shape must have voxels inside the box, got Points"),
        (sv.Points(torch.full((1, 3), float("nan"))), "finite"),
        (sv.Mesh(torch.full((3, 3), float("inf")), torch.tensor([[0, 1, 2]])), "finite"),
        (sv.Voxels(sv.Grid.full(0, 1, voxel_size=0.1)), r"shape must have voxel_size \(0.125, 0.125, 0.125\)"),
        (sv.Voxels(sv.Grid.full(0, 1, voxel_size=0.125)), r"shape must have origin \(0.0625, 0.0625, 0.0625\)"),
        (
            sv.Voxels(sv.Grid.full(0, 1, batch_size=2, voxel_size=0.125, origin=0.0625)),
            "shape must be one grid, got a batch of 2",
        ),
    ],
)
def test_bad_shapes(bad, message):
    with pytest.raises(ValueError, match=message):
        build_hierarchy(bad, Box((4, 8)))


def test_bad_arguments():
    with pytest.raises(TypeError, match="shape must be a Mesh, Points or Voxels, got str"):
        build_hierarchy("a mesh", Box((4, 8)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside must be 'error', 'clip' or 'rescale', got 'crop'"):
        build_hierarchy(shape("sphere"), Box((4, 8)), outside="crop")  # type: ignore[arg-type]
    far = sv.Points(torch.tensor([[3.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="shape must have voxels inside the box"):
        build_hierarchy(far, Box((4, 8)), outside="clip")


# --- The box


def test_box():
    box = Box((16, 64), (102.4, 102.4, 25.6))
    assert box.voxel_size(1) == pytest.approx(1.6)
    assert (box.shape(0), box.shape(1)) == ((16, 16, 4), (64, 64, 16))
    assert box.margin == pytest.approx(3.2)
    assert Box((8,)).margin == 0
    assert as_box([16, 64], 2) == Box((16, 64), (2.0, 2.0, 2.0))
    assert as_box((16,), (4, 4, 2)) == Box((16,), (4.0, 4.0, 2.0))


@pytest.mark.parametrize(
    ("levels", "size", "message"),
    [
        ((), (1, 1, 1), r"levels must begin with an even number of voxels, got \(\)"),
        ((3, 6), (1, 1, 1), "levels must begin with an even number"),
        ((0,), (1, 1, 1), "levels must begin with an even number"),
        ((16, 48), (1, 1, 1), "each of levels must be the one before times a power of two"),
        ((16, 16), (1, 1, 1), "each of levels must be the one before times a power of two"),
        ((16, 8), (1, 1, 1), "each of levels must be the one before times a power of two"),
        ((16, 40), (1, 1, 1), "each of levels must be the one before times a power of two"),
        ((16, 64), (1, 1, 0.1), "size must be multiples of two voxels of 0.0625"),
        ((16, 64), (1, 1, 0), "size must be three positive edges"),
        ((16, 64), (1, 1, -1), "size must be three positive edges"),
    ],
)
def test_bad_boxes(levels, size, message):
    with pytest.raises(ValueError, match=message):
        Box(levels, size)


# --- Trees


VOXELS = st.lists(st.tuples(*[st.integers(-40, 40)] * 3), min_size=1, max_size=12)


@given(VOXELS, st.integers(0, 5))
def test_enclosing_coarsen(voxels, depth):
    factor = 1 << depth
    grid = sv.Grid.from_coords(torch.tensor(voxels), voxel_size=0.5, origin=0.25)
    coarse = enclosing_coarsen(grid, factor)
    assert coarse.voxel_size == (0.5 * factor,) * 3
    assert coarse.origin == (0.25 * factor,) * 3
    assert rows(coarse) == (set(voxels) if depth == 0 else enclosing(voxels, 0.5, 0.5 * factor))
    assert (
        coarse.same_voxels(
            sv.Grid.from_points(
                grid.to_world(grid.ijk), voxel_size=coarse.voxel_size, origin=coarse.origin, mode="enclosing"
            )
        )
        or depth == 0
    )


def test_enclosing_coarsen_by_one_is_the_grid():
    grid = sv.Grid.full(0, 2)
    assert enclosing_coarsen(grid, 1) is grid


@pytest.mark.parametrize("factor", [0, -2, 3, 6])
def test_bad_factors(factor):
    with pytest.raises(ValueError, match=f"factor must be a power of two, got {factor}"):
        enclosing_coarsen(sv.Grid.full(0, 1), factor)


def test_thin_levels(tmp_path):
    """Their voxels are exactly those that contain finer ones; the levels below are dilated as before."""
    box = Box((4, 16, 32), thin=(16,))
    mesh = from_trimesh(trimesh.creation.icosphere(radius=0.3))
    coarse, middle, fine = (voxels.grid for voxels in build_hierarchy(mesh, box, samples=1000))
    assert middle.same_voxels(fine.coarsen(2))
    assert coarse.same_voxels(enclosing_coarsen(middle, 4))
    # The finest level of a box without the last one is the same: a mesh touches the same voxels.
    alone = build_hierarchy(mesh, Box((4, 16)), samples=1000)
    assert middle.same_voxels(alone[1].grid)
    assert coarse.same_voxels(alone[0].grid)
    assert box.margin == Box((4, 16)).margin < Box((4, 16, 32)).margin
    source = Source("ball", lambda: mesh)
    build([source], tmp_path / "data", box, attributes=("normal",), samples=1000)
    assert read_card(tmp_path / "data").box == box
    assert json.loads((tmp_path / "data" / "card.json").read_text())["thin"] == [16]
    for wrong in ((32,), (8,), (16, 4)):
        with pytest.raises(ValueError, match="thin must be levels before the finest of"):
            Box((4, 16, 32), thin=wrong)


def test_voxels_near_the_border_of_a_sample() -> None:
    """They are kept, and coarser voxels that early dilation would put outside of the box are left out."""
    box = Box((8, 32))
    ijk = torch.tensor([[15, 0, 0], [-16, 3, 15], [0, 0, 0]])
    shape = Voxels(Grid.from_coords(ijk, voxel_size=1 / 32, origin=1 / 64), {"normal": torch.eye(3)})
    with pytest.raises(ValueError, match=r"shape must keep a distance of 0\.0625 from the border"):
        build_hierarchy(shape, box)
    coarse, fine = build_hierarchy(shape, box, crop=True)
    assert fine.grid.same_voxels(shape.grid)
    places = {tuple(place) for place in coarse.grid.ijk.tolist()}
    assert {(3, 0, 0), (-4, 0, 3), (0, 0, 0), (-1, -1, -1)} <= places
    assert all(-4 <= x < 4 for place in places for x in place)
    # Where there is room, nothing changes.
    inner = shape.prune(shape.grid.ijk.abs().amax(1) < 4)
    for a, b in zip(build_hierarchy(inner, box), build_hierarchy(inner, box, crop=True), strict=True):
        assert a.grid.same_voxels(b.grid)
    beyond = Voxels(Grid.from_coords(torch.tensor([[16, 0, 0]]), voxel_size=1 / 32, origin=1 / 64))
    with pytest.raises(ValueError, match=r"shape must lie in the box \(1.0, 1.0, 1.0\), got 1 voxels beyond"):
        build_hierarchy(beyond, box, crop=True)
