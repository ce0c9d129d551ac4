"""The trained model in the package, checked against the checksums that come with it."""

import re
from pathlib import Path

from xcube.networks.pretrained import CONFIG, WEIGHTS, digest

MODEL = Path(__file__).parents[1] / "weights" / "shapes"
DEFAULT_VAE = "vae-1"  # subfolder of the model: the VAE of the resolution that is sampled by default
INDEX = "pipeline.json"
SUMS = "SHA256SUMS"  # as `sha256sum` writes it
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
ADVICE = "install the package again, or in a clone run: git checkout -- models/xcube/weights"


def packaged_model() -> Path:
    """Return the folder of the model `shapes` in the package, after a check of all its files.

    Raises:
        FileNotFoundError: If a file is missing or cannot be read.
        ValueError: If a file is damaged.
    """
    try:
        lines = (MODEL / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        sums = [match.groups() for match in map(LINE.fullmatch, lines) if match]
        damaged = [name for sha256, name in sums if digest(MODEL / name) != sha256]
    except OSError as error:
        raise FileNotFoundError(f"the weights in the package are missing: {error.filename}; {ADVICE}") from error
    needed = {file.relative_to(MODEL).as_posix() for name in (CONFIG, WEIGHTS) for file in MODEL.glob(f"*/{name}")}
    if len(sums) < len(lines) or not {INDEX, *needed} <= {name for _, name in sums}:
        damaged.append(SUMS)
    if damaged:
        raise ValueError(f"the weights in the package are damaged: {MODEL / damaged[0]}; {ADVICE}")
    return MODEL
