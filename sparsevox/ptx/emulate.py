"""Running Triton kernels on CPU tensors: compiled for a GPU, executed by the interpreter of PTX."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from sparsevox.ptx.findings import Finding, raise_for
from sparsevox.ptx.machine import Machine, Program
from sparsevox.ptx.memory import sparse_memory


@dataclass
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: Name of the kernel.
        programs: Number of programs per axis of the grid.
        num_warps: Warps per program.
        signature: Type of each run-time argument by name, e.g. `{"x_ptr": "*fp16", "n": "i32"}`.
        constants: Value of each compile-time argument by name, with arguments equal to 1 among them.
        text: The compiled PTX.
        program: The same, parsed. Launches of the same code share it.
        arguments: Run-time arguments as they were before the launch, in order. In sparse memory nothing is copied,
            so that tensors hold what they hold after it.
        shared_bytes: Bytes of shared memory per program.
        seconds: CPU time of the run, without compilation.
    """

    kernel: str
    programs: tuple[int, ...]
    num_warps: int
    signature: dict[str, str]
    constants: dict[str, Any]
    text: str
    program: Program
    arguments: list[Any]
    shared_bytes: int
    seconds: float


@dataclass
class _Compiled:
    program: Program
    text: str
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    shared_bytes: int


class Emulation:
    """The launches within one `emulate` and their findings.

    Attributes:
        findings: What was found, one per kind, place and launch.
        launches: In order.
        memory: The sparse memory, where `emulate` was called with its size.
    """

    def __init__(
        self, target: str, seed: int | None, only: Callable[..., Any] | None, checked: bool, sparse: int | None
    ) -> None:
        self.findings: list[Finding] = []
        self.launches: list[Launch] = []
        self._target = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
        self._backend = make_backend(self._target)
        self._seed, self._only, self._checked = seed, only, checked and sparse is None
        self.memory = None if sparse is None else sparse_memory(sparse)
        self._binders: dict[JITFunction, Any] = {}

    def check(self) -> None:
        """Raise a `KernelError` that lists the findings, unless all of them are benign."""
        raise_for(self.findings)

    def _compile(self, kernel: JITFunction, options: dict[str, Any], bound: Any, specialization: Any) -> _Compiled:
        key = (self._target, kernel.cache_key, str(specialization), str(sorted(options.items())))
        if key not in _compiled:
            parsed, signature, constants, attributes = kernel._pack_args(
                self._backend, options, bound, specialization, options
            )
            source = ASTSource(kernel, signature, constants, attributes)
            result = triton.compile(source, target=self._target, options=parsed.__dict__)
            if result.metadata.global_scratch_size or result.metadata.profile_scratch_size:
                raise NotImplementedError(f"{kernel.__name__} needs scratch memory")
            text = result.asm["ptx"]
            names = list(signature)
            constants = {names[path[0]]: value for path, value in constants.items() if len(path) == 1}
            run_time = {name: kind for name, kind in signature.items() if kind != "constexpr"}
            _compiled[key] = _Compiled(
                Program(text), text, run_time, constants, result.metadata.num_warps, result.metadata.shared
            )
        return _compiled[key]

    def _run(self, kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if kernel not in self._binders:
            self._binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, self._backend)
        bound, specialization, options = self._binders[kernel](*args, **kwargs)
        compiled = self._compile(kernel, options, bound, specialization)
        if warmup:
            return
        programs = tuple(grid(bound) if callable(grid) else grid)
        arguments = [
            float(bound[name]) if kind.startswith("fp") else bound[name] for name, kind in compiled.signature.items()
        ]
        only = self._only(kernel.__name__, math.prod(programs)) if self._only else None
        # A deep copy at once keeps what arguments share; only leaves of the autograd graph can be copied.
        plain = [argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        before = arguments if self.memory else copy.deepcopy(plain)
        begun = time.thread_time()
        machine = Machine(
            compiled.program,
            arguments,
            programs=programs,
            shared_bytes=compiled.shared_bytes,
            seed=None if self._seed is None else self._seed + len(self.launches),
            checked=self._checked,
            only=only,
        )
        machine.run()
        self.findings += machine.findings
        self.launches.append(
            Launch(
                kernel.__name__,
                programs,
                compiled.num_warps,
                compiled.signature,
                compiled.constants,
                compiled.text,
                compiled.program,
                before,
                compiled.shared_bytes,
                time.thread_time() - begun,
            )
        )


_compiled: dict[Any, _Compiled] = {}  # lives as long as the process: kernels are parsed once


@contextmanager
def emulate(
    target: str = "sm_80",
    seed: int | None = 0,
    *,
    only: Callable[[str, int], Sequence[int]] | None = None,
    checked: bool = True,
    sparse: int | None = None,
) -> Iterator[Emulation]:
    """Compile Triton kernels for a GPU and run their PTX on this computer, for all launches within the `with`.

    Args:
        target: `"sm_80"` or `"sm_90"`.
        seed: Of the random schedule: the order of programs and warps, of atomics, and of stores that collide.
            None: a fixed order.
        only: Called with the kernel's name and its number of programs; returns the programs to run. None: all.
        checked: False: look for bad addresses only, not for races and uninitialized memory.
        sparse: Bytes of a `sparse_memory`, which is then `memory` of the result, for tensors larger than the memory of
            this computer. Nothing is copied and races are not looked for.

    Raises:
        RuntimeError: If kernels are interpreted (`TRITON_INTERPRET=1`) rather than compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels are interpreted: set TRITON_INTERPRET=0 before their module is imported")
    emulation = Emulation(target, seed, only, checked, sparse)
    original = JITFunction.run

    def run(kernel: JITFunction, *args: Any, **kwargs: Any) -> None:
        emulation._run(kernel, *args, **kwargs)

    JITFunction.run = run
    try:
        yield emulation
    finally:
        JITFunction.run = original
