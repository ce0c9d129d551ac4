"""Launching kernels, and the names of their arguments.

A name means the same dtype in every kernel, so that a test can compile all of them ahead of time.
"""

import torch
import triton

# Dtypes of pointers. A launcher may pass another integer dtype where a comment says so.
POINTEES = {
    "keys_ptr": "*i64",
    "masks_ptr": "*i64",
    "other_keys_ptr": "*i64",
    "other_masks_ptr": "*i64",
    "out_keys_ptr": "*i64",
    "out_masks_ptr": "*i64",
    "codes_ptr": "*i64",
    "counts_ptr": "*i64",  # voxels of each brick
    "places_ptr": "*i64",  # index of each item in another array
    "starts_ptr": "*i32",
    "table_ptr": "*i32",
    "other_starts_ptr": "*i32",
    "bricks_ptr": "*i32",  # rows of the bricks at fixed positions around each brick, [L, places]
    "steps_ptr": "*i64",
    "moves_ptr": "*i64",
    "targets_ptr": "*i32",  # output rows
    "ranks_ptr": "*i64",
    "order_ptr": "*i32",  # output rows in the order of tiles
    "taps_ptr": "*i32",  # taps of each tile
    "lengths_ptr": "*i32",  # number of taps of each tile
    "coords_ptr": "*i64",  # or int32
    "out_coords_ptr": "*i32",
    "rows_ptr": "*i64",
    "sources_ptr": "*i32",  # input rows that output rows read: a list, or a table [K, M]
    "ranges_ptr": "*i32",  # offsets into rows or into a list of them, [M + 1]
    "parents_ptr": "*i32",
    "winners_ptr": "*i32",  # input rows of largest or smallest elements, [M, C]
    "out_winners_ptr": "*i32",
    "divisors_ptr": "*i64",
    "offsets_ptr": "*i64",  # first row of each item of a batch, [B + 1]
    "keep_ptr": "*i8",  # bool
    "volume_ptr": "*i8",  # bool
    "lower_ptr": "*i64",  # smallest and largest coordinates of each grid, [B, 3]
    "upper_ptr": "*i64",
    "bad_ptr": "*i64",  # one element: the smallest row that is out of range
    "last_batch_ptr": "*i64",  # one element: the largest batch index
}

# Run-time numbers, never specialized. Triton passes small ones as i32, so kernels widen before they multiply.
SCALARS = {
    "n_bricks": "i64",
    "n_others": "i64",
    "n_pairs": "i64",
    "n_rows": "i64",
    "n_items": "i64",
    "taps": "i32",
    "length": "i32",
    "places": "i32",
    **{f"stride_{axis}": "i32" for axis in "xyz"},
    "channels": "i32",
    "groups": "i32",
    "n_cells": "i64",
    "capacity": "i64",
    "batch_size": "i32",
    "level": "i32",
    **{f"{name}_{axis}": "i32" for name in ("lower", "upper", "size", "bricks") for axis in "xyz"},
    "lower": "i32",
    "upper": "i32",
}

# Contract products and sums to fused multiply-adds. Triton leaves the default to its version.
FP_FUSION = True

# The time of Triton's interpreter depends on the number of programs, hardly on their size.
INTERPRETER_LANES = 1 << 16


def launch(
    kernel: triton.JITFunction,
    n: int,
    *args: torch.Tensor | int,
    block: int,
    lanes: int = 1,
    parts: int = 1,
    num_warps: int = 4,
    **flags: int | str | bool,
) -> None:
    """Run `kernel` over `n` items, `block` per program, each `lanes` lanes wide. Without items nothing is launched.

    `parts` consecutive programs share a block of items.
    """
    if n * parts == 0:
        return
    tensor = args[0]
    assert isinstance(tensor, torch.Tensor)
    if not isinstance(kernel, triton.JITFunction):  # an interpreted one
        block = INTERPRETER_LANES // lanes
    with torch.cuda.device_of(tensor):
        kernel[(triton.cdiv(n, block) * parts,)](
            *args, BLOCK=block, num_warps=num_warps, enable_fp_fusion=FP_FUSION, **flags
        )


def launch_programs(
    kernel: triton.JITFunction, programs: int, *args: torch.Tensor | int, **options: int | str | bool
) -> None:
    """Run `programs` programs of `kernel`. Its flags depend on the arguments and cannot be read from the source."""
    tensor = args[0]
    assert isinstance(tensor, torch.Tensor)
    if programs:
        with torch.cuda.device_of(tensor):
            kernel[(programs,)](*args, enable_fp_fusion=FP_FUSION, **options)
