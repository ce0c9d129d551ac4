"""Voxelize a mesh at several resolutions, with normals, and convert the voxels back to a mesh.

    python examples/hierarchy.py --out demo --mesh bunny.obj

Requires `pip install 'sparsevox[io,viz]'`. Without --mesh, a trefoil knot is used.
"""

import argparse
import time
from pathlib import Path

import torch
from topology import knot

import sparsevox as sv
from sparsevox import io
from sparsevox.viz import render_row, show_html


def levels_of(mesh: sv.Mesh, resolution: int, count: int = 3) -> list[sv.Voxels]:
    """Compute voxels with normals at `count` levels, coarsest first. Each level doubles the resolution."""
    fine = io.voxelize(mesh, voxel_size=1 / resolution)
    centers = sv.Points(fine.grid.to_world(fine.grid.ijk), fine.attributes)
    grids = [fine.grid]
    while len(grids) < count:
        grids.insert(0, grids[0].coarsen(2))
    return [io.splat_attributes(centers, grid) for grid in grids[:-1]] + [fine]


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    parser.add_argument("--mesh", type=Path, help="mesh file (.obj, .ply, .stl, .off, .glb or .gltf)")
    parser.add_argument("--resolution", type=int, default=128, help="voxels along the longest side (default: 128)")
    args = parser.parse_args()
    if not 16 <= args.resolution <= 1024:
        parser.error(f"--resolution must be between 16 and 1024, got {args.resolution}")

    mesh = io.fit(io.from_trimesh(knot()) if args.mesh is None else io.load_mesh(args.mesh))
    print(mesh)
    metadata = io.describe(mesh)
    print("closed" if metadata.closed else f"open, with {metadata.boundary_edges} boundary edges: no inside")

    start = time.perf_counter()
    levels = levels_of(mesh, args.resolution)
    print(f"\n{len(levels)} levels with normals in {time.perf_counter() - start:.2f} s")
    for level in levels:
        print(f"  {level}")

    start = time.perf_counter()
    surface = io.to_mesh(levels[-1])
    print(f"\nback to {surface} in {time.perf_counter() - start:.2f} s")

    args.out.mkdir(parents=True, exist_ok=True)
    io.save_voxels(levels[-1], args.out / "voxels.npz")
    io.save_mesh(surface, args.out / "surface.glb")
    row: list[sv.Grid | sv.Mesh] = [mesh, *(level.grid for level in levels), surface]
    titles = ["mesh", *(f"{level.num_voxels:,} voxels" for level in levels), "reconstruction"]
    colors: list[torch.Tensor | None] = [None, *((level.attributes["normal"] + 1) / 2 for level in levels), None]
    render_row(row, args.out / "hierarchy.png", titles=titles, colors=colors, width=230 * len(row))
    show_html({"voxels": levels, "mesh": mesh, "reconstruction": surface}, args.out / "hierarchy.html", color="height")
    print(f"\nwrote {args.out / 'hierarchy.png'} and {args.out / 'hierarchy.html'}, to open in a browser")


if __name__ == "__main__":
    main()
