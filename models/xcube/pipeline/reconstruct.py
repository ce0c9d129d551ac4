"""Reconstruction: encode a shape with a VAE, decode and refine it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsevox import Grid, Voxels
from sparsevox.io import save_mesh, to_mesh
from sparsevox.viz import render_row, show_html
from xcube.data.axes import Up, upright
from xcube.data.hierarchy import Box, Outside, build_hierarchy
from xcube.data.sources import load_shape
from xcube.geometry.pyramid import TOLERANCE
from xcube.networks.decoder import with_unit_normals
from xcube.networks.losses import normal_angle, true_attributes, voxel_iou
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.refiner import Refiner
from xcube.networks.vae import VAE
from xcube.pipeline.output import shown_colors
from xcube.pipeline.packaged import DEFAULT_VAE, packaged_model


@dataclass(frozen=True)
class Reconstruction:
    """A shape, its reconstruction by a VAE, and the refined reconstruction.

    Args:
        input: Voxels of the shape.
        decoded: Voxels decoded from the mean of its latents.
        refined: Decoded voxels after refinement; None without a refiner.
        latents: Latent grid.
    """

    input: Voxels
    decoded: Voxels
    refined: Voxels | None
    latents: Grid

    @property
    def best(self) -> Voxels:
        """The refined voxels, or the decoded ones without a refiner."""
        return self.decoded if self.refined is None else self.refined

    def to(self, device: torch.device | str) -> "Reconstruction":
        """Move all tensors to a device."""
        refined = None if self.refined is None else self.refined.to(device)
        return Reconstruction(self.input.to(device), self.decoded.to(device), refined, self.latents.to(device))

    def metrics(self) -> dict[str, Any]:
        """Voxel IoU (mean over the batch), mean angle between normals in degrees, and numbers of voxels."""
        found: dict[str, Any] = {
            "voxels": self.input.num_voxels,
            "latent_voxels": self.latents.num_voxels,
            "decoded_voxels": self.decoded.num_voxels,
            "iou": float(voxel_iou(self.decoded.grid, self.input.grid).mean()),
        }
        if self.refined is not None:
            found["refined_iou"] = float(voxel_iou(self.refined.grid, self.input.grid).mean())
        if "normal" in self.best.attributes:
            target = true_attributes(self.input, self.best.grid, ["normal"])["normal"]
            found["normal_angle"] = float(normal_angle(self.best.attributes["normal"], target))
        return found


def reconstruct(voxels: Voxels, vae: VAE, refiner: Refiner | None = None) -> Reconstruction:
    """Encode voxels, decode the mean of their latents, and refine the result.

    Args:
        voxels: One grid or a batch, with the attributes that the model takes.
        vae: VAE of the level.
        refiner: Refiner of the level, if any.

    Raises:
        KeyError: If voxels lack an attribute that the model takes.
        ValueError: If the voxel size is not that of the model.
    """
    with torch.no_grad():
        latents = vae.eval().encode(voxels).mode()
        decoded = with_unit_normals(vae.decode(latents).voxels)
        refined = None if refiner is None else with_unit_normals(refiner.eval().refine(decoded))
    return Reconstruction(voxels, decoded, refined, latents.grid)


def box_of(vae: VAE, metadata: Mapping[str, Any]) -> tuple[Box, int]:
    """The box in which a VAE was trained and the number of its level, from the metadata of its folder.

    Without metadata it is a cube of edge 1 whose levels are the latent grid and the finest one.
    """
    if "levels" in metadata:
        x, y, z = metadata["size"]
        return Box(tuple(metadata["levels"]), (x, y, z), tuple(metadata.get("thin", ()))), int(metadata["level"])
    resolution = round(1 / vae.config.voxel_sizes[0])
    return Box((resolution // vae.config.factor[0], resolution)), 1


def reconstruct_file(
    shape: Path,
    model: Path | None = None,
    out: Path = Path("reconstruction"),
    refiner: Path | None = None,
    outside: Outside = "rescale",
    samples: int = 1_000_000,
    up: Up = "z",
) -> dict[str, Any]:
    """Reconstruct a mesh or a point cloud with a trained VAE, and write a mesh, a picture, an HTML page and metrics.

    Args:
        shape: File of the shape, in any format that `xcube data build` reads.
        model: Folder of the VAE; by default that of 64^3 voxels of the model `shapes`, which is in the package.
        out: Output folder of reconstruction.glb (unless no voxel is decoded), reconstruction.png, reconstruction.html
            and metrics.json.
        refiner: Folder of a refiner to apply to the decoded voxels.
        outside: Treatment of a shape that does not fit into the box of the model: "error" rejects it, "clip" crops it;
            "rescale" moves and scales every shape to fill the box.
        samples: Number of points to sample on the surface of a mesh, from which attributes are computed.
        up: Axis that points up in the file, "z" or "y"; shapes with y up are rotated so that z points up.

    Returns:
        Metrics by name, as in metrics.json.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be used, networks do not fit each other, or the shape lacks an attribute that the
            model takes.
    """
    model = packaged_model() / DEFAULT_VAE if model is None else model
    vae = from_pretrained(model, VAE)
    network = None if refiner is None else from_pretrained(refiner, Refiner)
    if network is not None and abs(network.config.voxel_size / vae.config.voxel_sizes[0] - 1) > TOLERANCE:
        sizes = f"{vae.config.voxel_sizes[0]}, like {model}, got {network.config.voxel_size}"
        raise ValueError(f"refiner must have the voxel_size {sizes}")
    box, level = box_of(vae, read_config(model)["metadata"])
    given = upright(load_shape(shape), up)
    voxels = build_hierarchy(given, box, samples=samples, outside=outside, fill=vae.config.fill)[level]
    _check_attributes(shape, voxels, vae)
    start = time.perf_counter()
    result = reconstruct(voxels, vae, network)
    metrics = result.metrics() | {"seconds": round(time.perf_counter() - start, 3)}
    write(result, out)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def _check_attributes(path: Path, voxels: Voxels, vae: VAE) -> None:
    needed = [name for name in ("normal", "intensity", "color", "fill") if getattr(vae.config, name)]
    needed += ["label"] * (vae.config.num_labels > 0)
    missing = [name for name in needed if name not in voxels.attributes]
    if missing:
        raise ValueError(f"{path} must have the attributes {needed} that the model takes, got none of {missing}")


def write(result: Reconstruction, out: Path) -> None:
    """Write the mesh, the picture and the page of a reconstruction."""
    out.mkdir(parents=True, exist_ok=True)
    shown = {"input": result.input, "decoded": result.decoded}
    if result.refined is not None:
        shown["refined"] = result.refined
    if result.best.num_voxels:  # an empty grid has no surface
        save_mesh(to_mesh(result.best), out / "reconstruction.glb")
    shared = [name for name in ("color", "normal", "label") if all(name in v.attributes for v in shown.values())]
    colors = [shown_colors(v) for v in shown.values()]
    render_row([v.grid for v in shown.values()], out / "reconstruction.png", titles=list(shown), colors=colors)
    color = shared[0] if shared else None
    show_html(dict(shown), out / "reconstruction.html", title="Reconstruction", attributes=shared, color=color)
