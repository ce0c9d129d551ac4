"""A shape through a VAE and back: what the latents keep of it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsevox import Grid, Voxels
from sparsevox.io import load_mesh, save_mesh, to_mesh
from sparsevox.io.voxelize import normalized
from sparsevox.shapes import Shape
from sparsevox.viz import render_row, show_html
from xcube.data.hierarchy import Box, Outside, build_hierarchy
from xcube.losses import normal_angle, true_attributes, voxel_iou
from xcube.pretrained import from_pretrained
from xcube.refine import Refiner
from xcube.vae import VAE


@dataclass(frozen=True)
class Reconstruction:
    """The input, what was decoded, and what the refinement network made of that, if there is one."""

    input: Voxels
    decoded: Voxels
    refined: Voxels | None
    latents: Grid

    @property
    def best(self) -> Voxels:
        """The last of them."""
        return self.decoded if self.refined is None else self.refined

    def figures(self) -> dict[str, Any]:
        """How good it is: intersection over union, angle of normals in degrees, and numbers of voxels."""
        made: dict[str, Any] = {
            "voxels": self.input.num_voxels,
            "latent_voxels": self.latents.num_voxels,
            "decoded_voxels": self.decoded.num_voxels,
            "iou": float(voxel_iou(self.decoded.grid, self.input.grid)),
        }
        if self.refined is not None:
            made["refined_iou"] = float(voxel_iou(self.refined.grid, self.input.grid))
        if "normal" in self.best.attributes:
            target = true_attributes(self.input, self.best.grid, ["normal"])["normal"]
            made["normal_angle"] = float(normal_angle(self.best.attributes["normal"], target))
        return made


def reconstruct(voxels: Voxels, vae: VAE, refiner: Refiner | None = None) -> Reconstruction:
    """Encode voxels, decode the mean of their latents, and repair the result.

    Args:
        voxels: One grid or a batch, with the attributes that the model takes.
        vae: The VAE.
        refiner: The refinement network; None for none.

    Raises:
        KeyError: If voxels lack an attribute that the model takes.
        ValueError: If the voxels have another size than those of the model.
    """
    with torch.no_grad():
        latents = vae.eval().encode(voxels).mode()
        decoded = with_unit_normals(vae.decode(latents).voxels)
        refined = None if refiner is None else with_unit_normals(refiner.eval().refine(decoded))
    return Reconstruction(voxels, decoded, refined, latents.grid)


def with_unit_normals(voxels: Voxels) -> Voxels:
    """The same with normals of unit length."""
    if "normal" not in voxels.attributes:
        return voxels
    return voxels.with_attributes(normal=normalized(voxels.attributes["normal"]))


def box_of(vae: VAE, size: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Box:
    """A box of some size whose levels are the latent grid of a VAE and its finest one."""
    x, _, _ = vae.config.voxel_sizes
    resolution = round(size[0] / x)
    return Box((resolution // vae.config.factor[0], resolution), size)


def reconstruct_file(
    mesh: Path, model: Path, out: Path, *, refine: Path | None = None, outside: Outside = "rescale"
) -> dict[str, Any]:
    """A mesh from a file through a trained VAE; writes a mesh, a picture, a page and the figures.

    Args:
        mesh: Any file that trimesh reads.
        model: Folder of the VAE.
        out: Folder for `reconstruction.glb`, which an empty decode has none of, `reconstruction.png`,
            `reconstruction.html` and `figures.json`.
        refine: Folder of the refinement network.
        outside: What to do with a mesh that does not fit into the box of edge 1: "rescale", "clip" or "error".

    Returns:
        The figures.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be used.
    """
    vae = from_pretrained(model, VAE)
    refiner = None if refine is None else from_pretrained(refine, Refiner)
    shape: Shape = load_mesh(mesh)
    voxels = build_hierarchy(shape, box_of(vae), outside=outside)[-1]
    start = time.perf_counter()
    result = reconstruct(voxels, vae, refiner)
    figures = result.figures() | {"seconds": round(time.perf_counter() - start, 3)}
    write(result, out)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def write(result: Reconstruction, out: Path) -> None:
    """The mesh, the picture and the page of one reconstruction."""
    out.mkdir(parents=True, exist_ok=True)
    shown = {"input": result.input, "decoded": result.decoded}
    if result.refined is not None:
        shown["refined"] = result.refined
    if result.best.num_voxels:  # nothing has no surface
        save_mesh(to_mesh(result.best), out / "reconstruction.glb")
    colors = [(v.attributes["normal"].clamp(-1, 1) + 1) / 2 for v in shown.values()]
    render_row([v.grid for v in shown.values()], out / "reconstruction.png", titles=list(shown), colors=colors)
    show_html(dict(shown), out / "reconstruction.html", title="Reconstruction", color="normal")
