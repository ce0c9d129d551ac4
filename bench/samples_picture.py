"""Picture of samples for the README: `python -m bench.samples_picture demo/samples --out assets/samples.png`.

It shows the first sixteen samples, without selection, in a small picture of few colors.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.pictures import save_small
from xcube.pipeline.output import SampleFolder, draw_gallery

SHOWN = 16


def main(arguments: list[str] | None = None) -> int:
    """Draw the samples and write the picture."""
    parser = argparse.ArgumentParser("python -m bench.samples_picture", description="Draw the first sixteen samples.")
    parser.add_argument("samples", type=Path, help="folder written by xcube sample")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args(arguments)
    folder = SampleFolder(options.samples)
    shapes = {str(n): folder.levels(n)[-1] for n in range(SHOWN) if folder.file(n).is_file()}
    with tempfile.TemporaryDirectory() as place:
        large = Path(place) / "gallery.png"
        draw_gallery({name: voxels for name, voxels in shapes.items() if voxels.num_voxels}, large)
        save_small(large, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
