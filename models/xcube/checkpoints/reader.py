"""Reading checkpoints of PyTorch and Lightning without executing code that is pickled in them.

A pickle calls functions by their names. This reader provides those that build tensors and plain containers, and an
`Inert` object in place of any other, which stores its arguments and does nothing.
"""

import collections
import pickle
import zipfile
from os import PathLike
from types import SimpleNamespace
from typing import Any

import torch

ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    **{("torch", n): getattr(torch, n) for n in ("float16", "float32", "float64", "bfloat16", "int32", "int64")},
    **{
        ("torch", f"{n}Storage"): getattr(torch, f"{n}Storage")
        for n in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    },
    **{("builtins", t.__name__): t for t in (dict, list, set, tuple, int, float, bool, str, bytes, complex, slice)},
}


class Inert:
    """A placeholder for an object of an unknown class: the name of the class, its arguments and its state."""

    module = name = ""

    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any, **_: Any) -> "Inert":
        """Set the attributes here, as a pickle may make objects without calling `__init__`."""
        self = super().__new__(cls)
        self.args, self.state, self.items = args, None, {}
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Store an entry of an object that may have been a list."""
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        """Store entries of an object that may have been a list."""
        for value in values:
            self.append(value)

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return Inert(*args, **kwargs)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.module}.{self.name}, not loaded>"


class SafeUnpickler(pickle.Unpickler):
    """An unpickler that calls only the functions in `ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        """The function or class of a name, or an `Inert` placeholder."""
        found = ALLOWED.get((module.replace("__builtin__", "builtins"), name))
        return type("Inert", (Inert,), {"module": module, "name": name}) if found is None else found


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a file of `torch.save`: tensors are on the CPU, objects of unknown classes are `Inert`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it was not written by `torch.save` of PyTorch 1.6 or newer, is damaged, or holds no dictionary.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names, bad = archive.namelist(), archive.testzip()
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile raises many types for damaged files
        raise ValueError(f"{path} must be a complete checkpoint of torch.save") from error
    if bad is not None:
        raise ValueError(f"{path} is damaged: the checksum of {bad} is wrong")
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):  # torch.load would execute its code
        raise ValueError(f"{path} must be a checkpoint of torch.save, got a TorchScript archive")
    module = SimpleNamespace(Unpickler=SafeUnpickler, __name__="safe_pickle")
    try:
        loaded = torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except Exception as error:  # torch.load raises many types, too
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(loaded).__name__}")
    return loaded


def plain(value: Any) -> Any:
    """Convert containers of unknown classes, such as those of OmegaConf, to lists and dictionaries.

    Values other than numbers, strings and containers become None.
    """
    if isinstance(value, Inert):
        state: dict[Any, Any] = value.state if isinstance(value.state, dict) else {}
        for key in ("_content", "_val", "__dict__"):
            if key in state:
                return plain(state[key])
        content = value.items or {k: v for k, v in state.items() if not str(k).startswith("_")}
        return plain(content) if content else None
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    return value if isinstance(value, int | float | str | bool) else None
