"""`xcube reconstruct`. Options and help are those of `xcube.pipeline.reconstruct`."""

import functools
import sys
from pathlib import Path
from typing import Any

from xcube.pipeline.reconstruct import reconstruct_file


@functools.wraps(reconstruct_file)
def reconstruct(shape: Path, model: Path | None, out: Path, **options: Any) -> int:
    """Reconstruct a shape and print the metrics."""
    metrics = reconstruct_file(shape, model, out, **options)
    for name, value in metrics.items():
        sys.stdout.write(f"{name:>16}  {value:,.4g}\n" if isinstance(value, float) else f"{name:>16}  {value:,}\n")
    sys.stdout.write(f"view {out / 'reconstruction.png'}, or open {out / 'reconstruction.html'} in a browser\n")
    return 0
