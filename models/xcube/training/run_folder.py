"""The folder of a run: what an earlier call has left there, and whether it goes on or is done."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from xcube.data.dataset import remove_parts
from xcube.networks.earlier import upgrade
from xcube.networks.pretrained import CONFIG, WEIGHTS, read_config
from xcube.training.callbacks import LOGS, TABLE

CHECKPOINT = "last.ckpt"
METRICS = "metrics.json"

# What may be another when a run is taken up again.
FREE = {
    f"train.{name}"
    for name in ("steps", "minutes", "warmup", "val_every", "val_shapes", "save_every", "workers", "accelerator")
}

Options = dict[str, Any]


@rank_zero_only
def prepare(out: Path, restart: bool) -> None:
    """Make the folder of a run; with `restart`, remove what an earlier one has left.

    Raises:
        OSError: If it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(f"out must be a folder that can be written to, got {out}: {error}") from error
    remove_parts(out)
    if restart:
        for path in (out / CONFIG, out / WEIGHTS, out / METRICS, out / CHECKPOINT, out / LOGS / TABLE):
            path.unlink(missing_ok=True)
        for curves in (out / LOGS).glob("events.out.tfevents.*"):
            curves.unlink()


def finished(out: Path, options: Options) -> bool:
    """Whether a folder holds the network that a run with these options ends with, or one of more steps.

    Raises:
        ValueError: If it holds another one.
    """
    if not (out / CONFIG).is_file():
        return False
    values = read_config(out)
    metadata = values["metadata"]
    if "options" not in metadata:
        raise ValueError(f"out must be the folder of a run, got {out}, which holds a {values['kind']} from elsewhere")
    place = {name: metadata.get(name) for name in options["data"]}
    there = {"kind": values["kind"], "model": values["config"], "data": place} | metadata["options"]
    same_run(out, there, options)
    return there == options or int(metadata["steps"]) >= options["train"]["steps"]


def steps_of(out: Path, options: Options) -> int | None:
    """The steps that the checkpoint of a run has behind it, None if there is none.

    Raises:
        ValueError: If it is damaged, or of a run with other options.
    """
    path = out / CHECKPOINT
    if not path.is_file():
        return None
    there, steps = _checkpoint(path)
    same_run(out, there, options)
    return steps


def trained_with(out: Path) -> str | None:
    """The digest of the weights of the VAE with which the run in a folder began, None if there is no such run.

    Raises:
        ValueError: If a file is damaged.
    """
    found: Any = None
    if (out / CONFIG).is_file():
        found = read_config(out)["metadata"].get("options", {}).get("vae")
    elif (out / CHECKPOINT).is_file():
        found = _checkpoint(out / CHECKPOINT)[0].get("vae")
    return found


def same_run(out: Path, there: Options, options: Options) -> None:
    """Raise ValueError if options of a run are others than those it began with, but for those in `FREE`."""
    old, new = dict(_flat(there)), dict(_flat(options))
    others = [name for name in sorted(old.keys() | new.keys()) if name not in FREE and old.get(name) != new.get(name)]
    if others:
        told = ", ".join(f"{name} {old.get(name)}, now {new.get(name)}" for name in others)
        raise ValueError(f"{out} holds a run with other options: {told}; take another folder, or begin anew: restart")


def _checkpoint(path: Path) -> tuple[Options, int]:
    """Options and steps of a checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        options = dict(state["options"])
        model = upgrade(options["kind"], options["model"])
        return options | {"model": model}, int(state["global_step"])
    except Exception as error:  # torch.load raises whatever its readers raise
        first = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged, so the run cannot go on; begin anew with restart ({first})") from error


def _flat(values: Options, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
