"""Triton kernels and their launchers; stems, names and signatures are those of `sparsevox.reference`.

A module is imported when it is first used, so that `import sparsevox` works without Triton.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that an editor can follow `kernels.conv.conv`
    from sparsevox.kernels import (
        bricks,
        conv,
        dense,
        morphology,
        neighbors,
        norm,
        plans,
        pool,
        sample,
        segment,
        topology,
    )

__all__ = ["bricks", "conv", "dense", "morphology", "neighbors", "norm", "plans", "pool"]
__all__ += ["sample", "segment", "topology"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
