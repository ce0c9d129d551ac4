"""Launching kernels, and the names of their arguments.

A name means the same dtype in every kernel, so that a test can compile all of them ahead of time.

`kernel[grid](*args)` costs the host tens of microseconds: Triton inspects all arguments to find the compiled kernel. So
the first launch of a kind goes this way and the compiled kernel that it returns is kept; later launches of the kind
call it directly. Two launches are of one kind if Triton would run the same binary for both (`_Launcher.kind`).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

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

# Devices whose kernels are kept. `_Launcher` relies on the signature of `CompiledKernel.run`, which takes all
# parameters of a kernel, constants included. Triton does not promise it: with other versions, no kernel is kept.
TESTED = ("3.6", "3.7", "3.8", "3.9")
DIRECT = frozenset({"cuda"} if triton.__version__.startswith(tuple(f"{v}." for v in TESTED)) else ())

ON_AMD = torch.version.hip is not None

# The time of Triton's interpreter depends on the number of programs, hardly on their size.
INTERPRETER_LANES = 1 << 16


def cdiv(a: int, b: int) -> int:
    """Round `a / b` up. `triton.cdiv` is for kernels; on the host it takes microseconds."""
    return -(-a // b)


def launch(
    kernel: triton.JITFunction,
    n: int,
    *args: torch.Tensor | int,
    block: int,
    lanes: int = 1,
    parts: int = 1,
    num_warps: int = 4,
    **flags: float | str | bool,
) -> None:
    """Run `kernel` over `n` items, `block` per program, each `lanes` lanes wide. Without items nothing is launched.

    `parts` consecutive programs share a block of items.
    """
    if not isinstance(kernel, triton.JITFunction):  # an interpreted one
        block = INTERPRETER_LANES // lanes
    launch_programs(kernel, cdiv(n, block) * parts, args, {"BLOCK": block, "num_warps": num_warps, **flags})


def launch_programs(
    kernel: triton.JITFunction, programs: int, args: Sequence[torch.Tensor | int], options: Mapping[str, Any]
) -> None:
    """Run `programs` programs of `kernel`. Its flags depend on the arguments and cannot be read from the source."""
    tensor = args[0]
    assert isinstance(tensor, torch.Tensor)
    device = tensor.get_device()
    if programs == 0:
        return
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch_programs(kernel, programs, args, options)
    elif tensor.device.type in DIRECT and _is_ordinary(kernel):
        launcher = _launchers.get(id(kernel))
        if launcher is None:
            launcher = _launchers[id(kernel)] = _Launcher(kernel)
        launcher.launch(programs, args, options)
    else:
        _launch_by_triton(kernel, programs, args, options)


def _launch_by_triton(
    kernel: triton.JITFunction, programs: int, args: Sequence[torch.Tensor | int], options: Mapping[str, Any]
) -> Any:
    """Find the binary by all arguments, compile it if there is none, and launch it. Returns the compiled kernel."""
    return kernel[(programs,)](*args, **options, enable_fp_fusion=FP_FUSION)


def _is_ordinary(kernel: triton.JITFunction) -> bool:
    """Whether nothing observes or changes launches: no interpreter, no hooks (profilers set them), no debugging."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook  # functions or lists of them
    hooks = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
    return isinstance(kernel, triton.JITFunction) and not (hooks or kernel.pre_run_hooks or runtime.debug)


class _Launcher:
    """Launches one kernel, and keeps it compiled for every kind of launch."""

    def __init__(self, kernel: triton.JITFunction) -> None:
        self.kernel = kernel
        self.kept: dict[tuple[Hashable, ...], tuple[CompiledKernel, tuple[Any, ...]]] = {}
        fixed = {kernel.arg_names[i] if isinstance(i, int) else i for i in kernel.do_not_specialize}
        self.specialized = [name not in fixed for name in kernel.arg_names]

    def launch(self, programs: int, args: Sequence[torch.Tensor | int], options: Mapping[str, Any]) -> None:
        """Run the kernel on the current device and stream."""
        kind = self.kind(args, options)
        kept = self.kept.get(kind)
        if kept is not None:
            # This is the body of `CompiledKernel.__getitem__`, without the metadata for hooks that are not there.
            compiled, constants = kept
            stream = driver.active.get_current_stream(driver.active.get_current_device())
            function, metadata = compiled.function, compiled.packed_metadata
            compiled.run(programs, 1, 1, stream, function, metadata, None, None, None, *args, *constants)
            return
        compiled = _launch_by_triton(self.kernel, programs, args, options)
        names = self.kernel.arg_names[len(args) :]
        if isinstance(compiled, CompiledKernel) and all(name in options for name in names):
            self.kept[kind] = compiled, tuple(options[name] for name in names)

    def kind(self, args: Sequence[torch.Tensor | int], options: Mapping[str, Any]) -> tuple[Hashable, ...]:
        """Everything that decides which binary Triton runs.

        Of a pointer: its dtype, whether it is aligned to 16 bytes, and on AMD whether 32-bit offsets reach all of its
        storage. Of an integer: its width, and unless it is exempt, whether it is 1 or divisible by 16. Of a constant
        or an option: name, type and value. The device.
        """
        words: list[Hashable] = [*options, *options.values(), *map(type, options.values()), args[0].get_device()]  # type: ignore[union-attr]
        for arg, specialized in zip(args, self.specialized, strict=False):
            if isinstance(arg, int):
                words.append(0 if -(1 << 31) <= arg < 1 << 31 else 1 if arg < 1 << 63 else 2)  # i32, i64, u64
                if specialized:
                    words += arg == 1, arg % 16 == 0
            else:
                words.append(arg.dtype if arg.data_ptr() % 16 == 0 else (arg.dtype,))
                if ON_AMD:
                    words.append(arg.untyped_storage().nbytes() < 1 << 31)
        return tuple(words)


# By identity: the hash of a kernel is that of its source.
_launchers: dict[int, _Launcher] = {}
