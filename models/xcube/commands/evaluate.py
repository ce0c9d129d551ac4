"""`xcube evaluate`: compare generated shapes with a dataset. Options and help are those of `evaluate_folder`."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xcube.evaluation.evaluate

# Lines of the table: the metric, its title, its format, and a remark.
FRACTION, COUNT, DISTANCE = "{:.1%}", "{:d}", "{:.3g}"
LINES = (
    ("shapes", "shapes", COUNT, ""),
    ("one_nna", "1-NNA", FRACTION, "50 % is ideal, 100 % is the worst; standard error {error:.1%}"),
    ("coverage", "COV", FRACTION, "higher is better"),
    ("mmd", "MMD", DISTANCE, "lower is better"),
    ("emd_one_nna", "1-NNA, EMD", FRACTION, ""),
    ("emd_coverage", "COV, EMD", FRACTION, ""),
    ("emd_mmd", "MMD, EMD", DISTANCE, ""),
    ("normal_consistency", "normals", FRACTION, "agreement of held-out shapes with the nearest one"),
    ("empty", "empty", COUNT, ""),
    ("valid", "valid", FRACTION, "one component, watertight"),
    ("one_component", "1 component", FRACTION, ""),
    ("watertight", "watertight", FRACTION, ""),
    ("open_edges", "open edges", DISTANCE, "mean number of edges at holes"),
    ("nearest_iou", "nearest IoU", FRACTION, "mean largest IoU with a training shape, coarsest level"),
    ("nearest_iou_max", "largest", FRACTION, "100 % is a copy"),
    ("nearest_chamfer", "nearest CD", DISTANCE, "mean smallest distance to a training shape"),
    ("nearest_chamfer_min", "smallest", DISTANCE, "0 is a copy"),
)
COLUMNS = {"samples": "samples", "training": "training", "held_out": "held-out"}


@functools.wraps(xcube.evaluation.evaluate.evaluate_folder)
def evaluate(samples: Path, data: Path, out: Path | None = None, **options: Any) -> int:
    """Run `evaluate_folder` and print a table of the metrics."""
    target = samples / "evaluation.json" if out is None else out
    found = xcube.evaluation.evaluate.evaluate_folder(samples, data, out=target, **options)
    sys.stdout.write(table(found.rows))
    used, total = found.settings["shapes"], found.settings["samples"]
    if used < total:
        sys.stdout.write(f"{used} of {total} samples were compared, limited by the smallest set or --count\n")
    sys.stdout.write(f"all metrics, including those of each sample: {target}\n")
    return 0


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format the metrics as a table: a line for each, with a column for each set and a remark."""
    lines = [("", *COLUMNS.values(), ""), *cells(rows)]
    return "".join(f"{t:<14}{a:>10}{b:>10}{c:>10}  {remark}".rstrip() + "\n" for t, a, b, c, remark in lines)


def cells(rows: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, str, str, str]]:
    """Return the cells of the table: for each line a title, a value for each set, and a remark."""
    error = rows["samples"]["one_nna_error"]
    found = []
    for key, title, form, remark in LINES:
        if any(key in rows[name] for name in COLUMNS):
            a, b, c = (form.format(rows[name][key]) if key in rows[name] else "-" for name in COLUMNS)
            found.append((title, a, b, c, remark.format(error=error)))
    return found
