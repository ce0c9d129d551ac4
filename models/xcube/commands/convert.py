"""`xcube convert`. Options and help are those of `xcube.checkpoints.convert`."""

import functools
import sys
from pathlib import Path

from xcube.checkpoints import convert as convert_checkpoint


@functools.wraps(convert_checkpoint)
def convert(checkpoint: Path, out: Path, hparams: Path | None = None) -> int:
    """Convert a checkpoint and print the size and the configuration of the network."""
    model = convert_checkpoint(checkpoint, out, hparams)
    sys.stdout.write(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters, {model.config}\n")
    return 0
