"""A GPU that does nothing: Triton compiles the kernels and launches them, but no kernel runs.

It measures the time that the host needs for a layer, without a GPU: checks of arguments, lookups of maps, allocations,
small ops of PyTorch, and Triton's own path up to the driver. What is missing is the driver's call (a few microseconds
per launch). Tensors are on the CPU, so the small ops of PyTorch compute, which takes no time that counts for small
tensors. The contents of results are meaningless.
"""

import contextlib
import importlib
import os
import pkgutil
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

TARGET = ("cuda", 90, 32)  # an H100
BLOCK_LANES = (
    1024  # elements of the block of a program, as on a GPU; blocks for the interpreter would take long to compile
)

launches = 0


class Launcher:
    """Count launches. It takes the place of the function in C that hands a kernel to the driver."""

    def __init__(self, source: object, metadata: object) -> None:
        pass

    def __call__(self, *arguments: object) -> None:
        global launches
        launches += 1


class Driver:
    """The part of Triton's driver that compiling and launching a kernel need."""

    launcher_cls = Launcher
    # Module, function, registers, spills, largest number of threads; and properties that kernels must fit in.
    utils = SimpleNamespace(
        load_binary=lambda name, kernel, shared, device: (1, 1, 64, 0, 1024),
        unload_module=lambda *_: None,
        get_device_properties=lambda device: {"max_shared_mem": 232448, "multiprocessor_count": 132},
    )

    def get_current_target(self) -> Any:
        """Return the GPU to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*TARGET)

    def get_current_device(self) -> int:
        """Return the index of the GPU."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_device_interface(self) -> Any:
        """Return the module of torch for the device."""
        return torch.cpu


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Let ops on CPU tensors take the path of a GPU inside of this context.

    Raises:
        RuntimeError: If TRITON_INTERPRET is set: the kernels of this process are interpreted.
    """
    from triton.runtime.driver import driver

    from sparsevox import kernels
    from sparsevox.kernels import _launch

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET must not be set: kernels would be interpreted, not launched")
    # The CPU path of launches is meant for the interpreter and takes larger blocks.
    with mock.patch.object(_launch, "INTERPRETER_LANES", BLOCK_LANES):
        for module in pkgutil.iter_modules(kernels.__path__):
            importlib.import_module(f"{kernels.__name__}.{module.name}")
        # Kernels are imported, so from here on the variable only says that they take CPU tensors.
        variables = mock.patch.dict(os.environ, {"SPARSEVOX_BACKEND": "triton", "TRITON_INTERPRET": "1"})
        direct = mock.patch.multiple(_launch, create=True, DIRECT=frozenset({"cpu"}), _launchers={})
        with variables, direct, mock.patch.object(driver, "_active", Driver()):
            yield
