"""The folder of a training run: whether it holds a run to resume, a finished one, or something else."""

import json
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from xcube.data.dataset import remove_partial_files
from xcube.networks.pretrained import CONFIG, WEIGHTS, read_config
from xcube.networks.upgrade_config import upgrade
from xcube.training.callbacks import LOGS, TABLE

CHECKPOINT = "last.ckpt"
METRICS = "metrics.json"
OLD_METRICS = "figures.json"  # its name in runs of earlier versions

# Options that may differ when a run is resumed.
CHANGEABLE = {
    f"train.{name}"
    for name in ("steps", "minutes", "warmup", "val_every", "val_shapes", "save_every", "workers", "accelerator")
}

# Options that runs of earlier versions do not record, and what they were.
UNRECORDED = {
    "model.solid": False,
    "model.fill": False,
    "model.thresholds": None,
    "model.certain": 0.99,
    "model.bridge": None,
    "model.color": False,
    "model.observed": 0,
    "model.words": 0,
    "model.box": 0,
    "loss.solid": 20.0,
    "loss.fill": 20.0,
    "diffusion.first": 0,
    "latents": "samples",
    "normal_noise": 0.0,
    "fill_noise": 0.0,
    "fill_drop": 0.0,
}

Options = dict[str, Any]


@rank_zero_only
def prepare_folder(out: Path, restart: bool) -> None:
    """Create the folder of a run; with `restart`, remove the files of an earlier run.

    Raises:
        OSError: If it cannot be created or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(f"out must be a folder that can be written to, got {out}: {error}") from error
    remove_partial_files(out)
    if restart:
        for path in (
            out / CONFIG,
            out / WEIGHTS,
            out / METRICS,
            out / OLD_METRICS,
            out / CHECKPOINT,
            out / LOGS / TABLE,
        ):
            path.unlink(missing_ok=True)
        for curves in (out / LOGS).glob("events.out.tfevents.*"):
            curves.unlink()


def is_finished(out: Path, options: Options) -> bool:
    """Whether a folder holds the network of a finished run with these options, or with more steps.

    Raises:
        ValueError: If it holds another network, or that of a run with other options.
    """
    if not (out / CONFIG).is_file():
        return False
    values = read_config(out)
    metadata = values["metadata"]
    if "options" not in metadata:
        raise ValueError(
            f"out must be the folder of a run, got {out}, which holds a {values['kind']} that was not trained by a run"
        )
    trained_on = {name: metadata.get(name) for name in options["data"]}
    old = {"kind": values["kind"], "model": values["config"], "data": trained_on} | metadata["options"]
    check_same_options(out, old, options)
    before, now = _comparable(old, options)
    return before == now or int(metadata["steps"]) >= options["train"]["steps"]


def checkpoint_step(out: Path, options: Options) -> int | None:
    """Return the step of the checkpoint in a folder, None if there is none.

    Raises:
        ValueError: If it is damaged, or of a run with other options.
    """
    path = out / CHECKPOINT
    if not path.is_file():
        return None
    old, step = _read_checkpoint(path)
    check_same_options(out, old, options)
    return step


def input_digests(out: Path, names: Collection[str]) -> dict[str, str]:
    """Return the digests of the networks with which the run in a folder began, by name; those that it records.

    Raises:
        ValueError: If a file is damaged.
    """
    options: Options = {}
    if (out / CONFIG).is_file():
        options = read_config(out)["metadata"].get("options", {})
    elif (out / CHECKPOINT).is_file():
        options = _read_checkpoint(out / CHECKPOINT)[0]
    return {name: options[name] for name in names if options.get(name) is not None}


def read_metrics(out: Path) -> dict[str, float]:
    """Read the metrics of a finished run.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the file is damaged.
    """
    file = next((out / name for name in (METRICS, OLD_METRICS) if (out / name).is_file()), out / METRICS)
    try:
        metrics: dict[str, float] = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return metrics


def check_same_options(out: Path, old: Options, new: Options) -> None:
    """Raise ValueError if a run began with other options, except for those in `CHANGEABLE`."""
    before, now = _comparable(old, new)
    others = [
        name
        for name in sorted(before.keys() | now.keys())
        if name not in CHANGEABLE and before.get(name) != now.get(name)
    ]
    if others:
        changes = ", ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in others)
        raise ValueError(
            f"{out} holds a run with other options: {changes}; use another folder, or restart to train from scratch"
        )


def _comparable(old: Options, new: Options) -> tuple[Options, Options]:
    """The options of an earlier run and of the present one, flat, with those that the earlier one did not record."""
    now = dict(_flat(new))
    return {name: value for name, value in UNRECORDED.items() if name in now} | dict(_flat(old)), now


def _read_checkpoint(path: Path) -> tuple[Options, int]:
    """Read options and step of a checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        options = dict(state["options"])
        model = upgrade(options["kind"], options["model"])
        return options | {"model": model}, int(state["global_step"])
    except Exception as error:  # torch.load raises whatever its readers raise
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is damaged, so the run cannot be resumed; restart to train from scratch ({first})"
        ) from error


def _flat(values: Options, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
