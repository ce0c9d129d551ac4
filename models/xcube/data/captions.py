"""The JSON file with the captions of the shapes of a dataset, one or several for each."""

import json
from os import PathLike
from pathlib import Path

from sparsevox.files import atomic_write

FILE = "captions.json"  # in the folder of a dataset


def write_captions(file: str | PathLike[str], captions: dict[str, list[str]]) -> None:
    """Write the captions of shapes by their names, as JSON, completely or not at all.

    Raises:
        OSError: If the file cannot be written.
    """
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(texts)}" for name, texts in sorted(captions.items()))
    with atomic_write(Path(file)) as target:
        target.write(f"{{\n{lines}\n}}\n".encode())


def read_captions(file: str | PathLike[str]) -> dict[str, list[str]]:
    """Read the captions of shapes by their names, one or several for each, from a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        captions = {name: [texts] if isinstance(texts, str) else list(texts) for name, texts in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} must map the names of shapes to texts: {error}") from error
    if not all(isinstance(text, str) for texts in captions.values() for text in texts):
        raise ValueError(f"{file} must map the names of shapes to texts, got other values")
    return captions
