"""The trained model in the package, checked against the checksums that come with it."""

from pathlib import Path

from xcube.networks.pretrained import digest

WEIGHTS = Path(__file__).parents[1] / "weights"
FINEST_VAE = "vae-1"  # subfolder of the model
SUMS = "SHA256SUMS"  # as `sha256sum` writes it
REINSTALL = "install the package again: pip install --force-reinstall --no-deps sparsevox"


def packaged_model(name: str = "shapes") -> Path:
    """Return the folder of a model in the package, after a check of all its files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged.
    """
    folder = WEIGHTS / name
    try:
        lines = (folder / SUMS).read_text().splitlines()
        found = {file: digest(folder / file) for file in (line.partition("  ")[2] for line in lines)}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the weights of the model {name!r} are missing: there is no {error.filename}; {REINSTALL}"
        ) from error
    damaged = [file for file in found if f"{found[file]}  {file}" not in lines]
    if damaged or not found:
        raise ValueError(
            f"the weights of the model {name!r} are damaged: {folder / (damaged or [SUMS])[0]}; {REINSTALL}"
        )
    return folder
