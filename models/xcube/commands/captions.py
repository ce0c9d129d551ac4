"""`xcube data captions`: texts for the shapes of a dataset."""

import sys
from pathlib import Path

from xcube.data.captions import FILE, write_captions
from xcube.data.dataset import read_card, read_index
from xcube.procedural.captions import WORDINGS, captions_of


def make_captions(dataset: Path, out: Path | None = None, wordings: int = WORDINGS, seed: int = 0) -> int:
    """Write captions of the shapes of a dataset, for a denoiser that takes texts, as JSON.

    Captions of procedural shapes mention some of their parts and sizes, those of furniture its title and its category.
    The exit status is 1 if no shape has a caption and 2 if there is no dataset.

    Args:
        dataset: Folder of the dataset.
        out: Output file; by default captions.json in the dataset.
        wordings: Maximum number of captions for each shape.
        seed: Random seed of what captions mention, and how.
    """
    entries = read_index(dataset, read_card(dataset))
    found = {entry.name: captions_of(entry, wordings, seed) for entry in entries}
    captions = {name: texts for name, texts in found.items() if texts}
    if not captions:
        sys.stderr.write(f"no shape of {dataset} has a caption: none is procedural, and index.csv has no titles\n")
        return 1
    file = dataset / FILE if out is None else out
    write_captions(file, captions)
    count = sum(map(len, captions.values()))
    sys.stdout.write(f"{count} captions of {len(captions)} of {len(entries)} shapes written to {file}\n")
    return 0
