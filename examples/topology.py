"""Voxelize meshes, change the topology of all of them as one batch, check invariants, and draw the results.

    python examples/topology.py --out demo --mesh bunny.obj teapot.stl

Requires `pip install 'sparsevox[io,viz]'`. Without --mesh, four built-in shapes are used.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from trimesh.creation import capsule, icosphere

import sparsevox as sv
from sparsevox.viz import render_row

Array = NDArray[np.float64]


def tube(x: Array, y: Array, z: Array, radius: float, sides: int = 24) -> trimesh.Trimesh:
    """Sweep a circle along a closed curve."""
    curve = np.stack([x, y, z], 1)  # [points, 3]
    tangent = np.roll(curve, -1, 0) - np.roll(curve, 1, 0)
    binormal = np.cross(tangent, np.roll(tangent, -1, 0) - np.roll(tangent, 1, 0))
    normal = np.cross(binormal, tangent)
    u, v = (radius * axis / np.linalg.norm(axis, axis=1, keepdims=True) for axis in (normal, binormal))
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)[:, None, None]
    vertices = curve + np.cos(angle) * u + np.sin(angle) * v  # [sides, points, 3]

    a = np.arange(vertices[..., 0].size).reshape(vertices.shape[:2])  # corners of the quads
    b, c, d = np.roll(a, -1, 0), np.roll(a, (-1, -1), (0, 1)), np.roll(a, -1, 1)
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    return trimesh.Trimesh(vertices.reshape(-1, 3), faces.reshape(-1, 3), process=False)


def knot() -> trimesh.Trimesh:
    """Create an upright trefoil knot."""
    t = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    return tube(-np.sin(3 * t), np.sin(t) + 2 * np.sin(2 * t), 2 * np.cos(2 * t) - np.cos(t), radius=0.55)


def coil() -> trimesh.Trimesh:
    """Create a spring bent into a ring."""
    t = np.linspace(0, 2 * np.pi, 1024, endpoint=False)
    r = 2.2 + np.cos(12 * t)
    return tube(r * np.cos(t), r * np.sin(t), np.sin(12 * t), radius=0.24)


def perforated_ball() -> trimesh.Trimesh:
    """Create a sphere with a round hole along each axis. Surfaces need not be closed."""
    ball = icosphere(subdivisions=5)
    ball.update_faces(np.abs(ball.triangles_center).max(1) < 0.87)
    return ball


def jack() -> trimesh.Trimesh:
    """Create three capsules that cross each other. Surfaces may intersect."""
    bar = capsule(height=2.0, radius=0.32)
    bar.apply_translation(-bar.bounds.mean(0))
    vertices = np.concatenate([np.roll(bar.vertices, axis, axis=1) for axis in range(3)])
    faces = np.concatenate([bar.faces + axis * len(bar.vertices) for axis in range(3)])
    return trimesh.Trimesh(vertices, faces)


def voxelize(mesh: trimesh.Trimesh, resolution: int) -> sv.Grid:
    """Voxelize the surface of a mesh, centered and scaled to size 1, with voxel size 1 / resolution."""
    vertices = torch.from_numpy((mesh.vertices - mesh.bounds.mean(0)) / mesh.extents.max())
    return sv.Grid.from_mesh(vertices, torch.tensor(mesh.faces), voxel_size=1 / resolution)


def timed(name: str, make: Callable[[], sv.Grid]) -> sv.Grid:
    """Make a grid, and print its size, its memory and the time it took."""
    start = time.perf_counter()
    grid = make()
    milliseconds = 1000 * (time.perf_counter() - start)
    print(f"{name:<24} {milliseconds:7.1f} ms {grid.nbytes / max(grid.num_voxels, 1):5.2f} bytes/voxel  {grid!r}")
    return grid


def check(claim: str, holds: bool) -> None:
    """Print a claim if it holds, and exit if it does not."""
    if not holds:
        raise SystemExit(f"check failed: {claim}")
    print(f"ok  {claim}")


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures (default: demo)")
    parser.add_argument("--mesh", type=Path, nargs="+", default=[], help="mesh files, in any format that trimesh reads")
    parser.add_argument("--resolution", type=int, default=64, help="voxels along the longest side (default: 64)")
    args = parser.parse_args()
    if not 8 <= args.resolution <= 2048:
        parser.error(f"--resolution must be between 8 and 2048, got {args.resolution}")
    for path in args.mesh:
        if not path.is_file():
            parser.error(f"--mesh must name existing files, got {path}")

    meshes = {"knot": knot(), "ball": perforated_ball(), "coil": coil(), "jack": jack()}
    meshes |= {path.stem: trimesh.load_mesh(path) for path in args.mesh}

    print("One grid per shape")
    shapes = {name: timed(name, partial(voxelize, mesh, args.resolution)) for name, mesh in meshes.items()}

    print("\nAll shapes as one batch")
    batch = timed("stack", lambda: sv.Grid.stack(list(shapes.values())))
    coarse = timed("coarsen(2)", lambda: batch.coarsen(2))
    fine = timed("subdivide(2)", lambda: batch.subdivide(2))
    thick = timed("dilate(2)", lambda: batch.dilate(2))
    core = timed("dilate(2).erode(1)", lambda: thick.erode(1))
    skin = timed("skin: dilated - core", lambda: thick - core)

    print("\nChecks")
    check("coarsen is the inverse of subdivide", fine.coarsen(2).same_voxels(batch))
    check("coarse voxels cover all fine voxels", (batch - coarse.subdivide(2)).num_voxels == 0)
    check("opening (erode, then dilate) adds no voxels", (core.dilate(1) - thick).num_voxels == 0)
    check("the union of core and skin is the dilated grid", (core | skin).same_voxels(thick))
    check("core and skin are disjoint", (core & skin).num_voxels == 0)
    alone = [shape.dilate(2) - shape.dilate(2).erode(1) for shape in shapes.values()]
    check("a batch gives the same result as its shapes alone", skin.same_voxels(sv.Grid.stack(alone)))

    args.out.mkdir(parents=True, exist_ok=True)
    render_row(batch, args.out / "shapes.png", titles=list(shapes), width=350 * len(shapes), palette=256)

    last = len(shapes) - 1 if args.mesh else 0
    lower, upper = skin[last].bounds()
    middle = (lower + upper)[0, 2] // 2
    half = skin[last].crop((-4096, -4096, -4096), (4096, 4096, int(middle)))
    row = {
        "coarsen(4)": batch[last].coarsen(4),
        "coarsen(2)": coarse[last],
        "from_mesh": batch[last],
        "dilate(2)": thick[last],
        "skin, cut open": half,
    }
    render_row(list(row.values()), args.out / "topology.png", titles=list(row), width=350 * len(row), palette=256)
    print(f"\nwrote {args.out / 'shapes.png'} and {args.out / 'topology.png'}")


if __name__ == "__main__":
    main()
