"""`xcube train`, `convert` and `reconstruct`: networks. What is slow to import is imported by who is called."""

import sys
from pathlib import Path

from xcube.config import VAEConfig
from xcube.data.hierarchy import Outside
from xcube.losses import LossConfig
from xcube.refine import RefineConfig
from xcube.training.config import TrainConfig


def train_vae(
    data: Path,
    out: Path,
    level: int = -1,
    model: VAEConfig = VAEConfig(),  # noqa: B008  (immutable)
    loss: LossConfig = LossConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    restart: bool = False,
) -> int:
    """Train the VAE of one level of a data set, or go on with it.

    The folder gets checkpoints, from which the same command goes on, logs for TensorBoard and as CSV, and in the end
    the network: config.json and model.safetensors.

    Args:
        data: folder of a data set, as xcube data makes them
        out: folder of the run
        level: which level of the data set; 0 is the coarsest, -1 the finest
        model: the network
        loss: weights of the losses
        train: optimisation
        restart: begin anew, whatever is in the folder
    """
    from xcube.training import train as runs

    runs.train_vae(data, out, level, model, loss, train, resume=not restart)
    sys.stdout.write(f"{out} holds the network\n")
    return 0


def train_refine(
    data: Path,
    out: Path,
    vae: Path,
    level: int = -1,
    model: RefineConfig = RefineConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    first: int = 200,
    last: int = 400,
    unscaled: bool = False,
    restart: bool = False,
) -> int:
    """Train the refinement network of one level, on what its VAE decodes from noised latents.

    Args:
        data: folder of a data set
        out: folder of the run
        vae: folder of the trained VAE
        level: which level of the data set; 0 is the coarsest, -1 the finest
        model: the network
        train: optimisation
        first: least step of the diffusion of which latents get the noise
        last: largest one
        unscaled: add noise to the latents as they are, as in the paper, and not to latents of unit deviation
        restart: begin anew, whatever is in the folder
    """
    from xcube.training import train as runs

    runs.train_refine(data, out, vae, level, model, train, first, last, scaled=not unscaled, resume=not restart)
    sys.stdout.write(f"{out} holds the network\n")
    return 0


def convert(checkpoint: Path, out: Path, hparams: Path | None = None) -> int:
    """Read a checkpoint of the release and write its network as a folder. Nothing in the file is executed.

    Args:
        checkpoint: a .ckpt file of the release
        out: folder for config.json and model.safetensors
        hparams: a JSON file with the hyper-parameters, if those in the checkpoint cannot be read
    """
    from xcube.checkpoints import convert as run

    model = run(checkpoint, out, hparams)
    sys.stdout.write(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters, {model.config}\n")
    return 0


def reconstruct(
    mesh: Path,
    model: Path,
    out: Path = Path("reconstruction"),
    refine: Path | None = None,
    outside: Outside = "rescale",
) -> int:
    """Send a mesh through a trained VAE and back: a mesh, a picture, a page and figures.

    Args:
        mesh: any file that trimesh reads
        model: folder of the VAE
        out: folder for the results
        refine: folder of the refinement network
        outside: what to do with a mesh that does not fit into the box: leave it, cut it off, or scale it
    """
    from xcube.reconstruct import reconstruct_file

    figures = reconstruct_file(mesh, model, out, refine=refine, outside=outside)
    for name, value in figures.items():
        sys.stdout.write(f"{name:>16}  {value:,.4g}\n" if isinstance(value, float) else f"{name:>16}  {value:,}\n")
    sys.stdout.write(f"look at {out / 'reconstruction.png'}, or open {out / 'reconstruction.html'}\n")
    return 0
