"""`xcube evaluate`: generated shapes against a data set. Options and help are those of the function from Python."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xcube.evaluation.evaluate

# Lines of the table: the figure, its title, how it is shown, and what a reader should know.
SHARE, COUNT, DISTANCE = "{:.1%}", "{:d}", "{:.3g}"
LINES = (
    ("shapes", "shapes", COUNT, ""),
    ("one_nna", "1-NNA", SHARE, "50 % is ideal, 100 % is told apart; ±{error:.1%} by chance"),
    ("coverage", "COV", SHARE, "higher is better"),
    ("mmd", "MMD", DISTANCE, "lower is better"),
    ("emd_one_nna", "1-NNA, EMD", SHARE, ""),
    ("emd_coverage", "COV, EMD", SHARE, ""),
    ("emd_mmd", "MMD, EMD", DISTANCE, ""),
    ("normal_consistency", "normals", SHARE, "agreement with the nearest held-out shape"),
    ("empty", "empty", COUNT, ""),
    ("valid", "valid", SHARE, "one part with a closed surface"),
    ("one_component", "one part", SHARE, ""),
    ("closed", "closed", SHARE, ""),
    ("nearest_iou", "nearest IoU", SHARE, "with a training shape, at the coarsest level"),
    ("nearest_iou_max", "most of them", SHARE, "100 % is a copy"),
    ("nearest_chamfer", "nearest CD", DISTANCE, "to a training shape"),
    ("nearest_chamfer_min", "least of them", DISTANCE, "0 is a copy"),
)
COLUMNS = {"samples": "samples", "training": "training", "held_out": "held-out"}


@functools.wraps(xcube.evaluation.evaluate.evaluate_folder)
def evaluate(samples: Path, data: Path, out: Path | None = None, **options: Any) -> int:
    """Write metrics and a table of them."""
    target = samples / "evaluation.json" if out is None else out
    found = xcube.evaluation.evaluate.evaluate_folder(samples, data, out=target, **options)
    sys.stdout.write(table(found.rows))
    used, there = found.settings["shapes"], found.settings["samples"]
    if used < there:
        sys.stdout.write(
            f"{used} of {there} samples were compared, as many as there are of each set, or were asked for\n"
        )
    sys.stdout.write(f"{target} has all metrics, those of each sample too\n")
    return 0


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Figures side by side: a line for each, a column for each set, a remark."""
    lines = [("", *COLUMNS.values(), ""), *cells(rows)]
    return "".join(f"{t:<14}{a:>10}{b:>10}{c:>10}  {remark}".rstrip() + "\n" for t, a, b, c, remark in lines)


def cells(rows: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, str, str, str]]:
    """What stands in the lines of the table: a title, a figure for each set, a remark."""
    error = rows["samples"]["one_nna_error"]
    found = []
    for key, title, form, remark in LINES:
        if any(key in rows[name] for name in COLUMNS):
            a, b, c = (form.format(rows[name][key]) if key in rows[name] else "-" for name in COLUMNS)
            found.append((title, a, b, c, remark.format(error=error)))
    return found
