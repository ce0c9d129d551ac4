"""Official hyperparameters, read key by key, so that none is overlooked."""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

T = TypeVar("T", bool, int, float, str, tuple[int, ...])

EXPECTED = {bool: "true or false", int: "an integer", float: "a number", str: "a string", tuple: "a list of integers"}
MISSING: Any = object()
REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # OmegaConf's name for the value of another key

# Patterns of keys that do not change what a trained network computes, each with its purpose.
IRRELEVANT: Mapping[str, str] = {
    "_*": "path or name of the dataset",
    "include_configs": "files that the options were read from",
    "name": "name of the run",
    "log_image": "logging",
    "visualize": "logging",
    "pretrained_weight": "weights that training began with",
    "*_dataset": "class of the dataset",
    "*_kwargs.*": "arguments of the dataset",
    "*_num_workers": "processes that load data",
    "test_set_shuffle": "order of the dataset",
    "duplicate_num": "repetitions of the dataset in an epoch",
    "batch_size": "optimization",
    "batch_size_val": "validation",
    "accumulate_grad_batches": "optimization",
    "max_epochs": "optimization",
    "optimizer": "optimization",
    "learning_rate.*": "optimization",
    "weight_decay": "optimization",
    "grad_clip": "optimization",
    "supervision.*": "weight of a loss",
    "max_text_len": "padding of texts, which is masked",
    "text_embed_drop_prob": "fraction of the shapes trained on without their text",
}


class Hyperparameters:
    """Hyperparameters by dotted names such as `network.encoder.c_dim`, which keeps track of the keys that were read.

    Args:
        values: Nested dictionaries as the official code writes them. A string "${key}" stands for the value of a key.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(_flat(values))
        self.unread = set(self.values)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def read(self, key: str, kind: type[T], default: T = MISSING) -> T:
        """The value of a key.

        Args:
            key: Dotted name.
            kind: bool, int, float, str, or tuple for a list of integers.
            default: Value of a key that is not given.

        Raises:
            KeyError: If the key is missing and has no default.
            ValueError: If the value is of another type; the message names the key and the value.
        """
        self.unread.discard(key)
        given = value = self.values.get(key, default)
        if value is MISSING:
            raise KeyError(key)
        if isinstance(value, str) and (reference := REFERENCE.fullmatch(value)):
            value = self.values.get(reference[1])
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and isinstance(value, list) and all(type(each) is int for each in value):
            value = tuple(value)
        if key in self and type(value) is not kind:  # True is no integer here
            raise ValueError(f"{key} must be {EXPECTED[kind]}, got {given!r}")
        return cast(T, value)

    def expect(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse other values of some keys than the allowed ones. A key that is not given has an allowed value.

        Raises:
            ValueError: If a key has another value; the message names the key and the value.
        """
        for key in sorted(allowed.keys() & self.values.keys()):
            value = self.read(key, type(allowed[key][0]))
            if value not in allowed[key]:
                names = " or ".join(map(repr, allowed[key]))
                raise ValueError(f"{key} must be {names} for a network like the official ones, got {value!r}")

    def done(self, irrelevant: Mapping[str, str]) -> None:
        """Refuse keys that were not read and are not known to be irrelevant.

        Args:
            irrelevant: Patterns of keys in addition to `IRRELEVANT`.

        Raises:
            ValueError: If a key is unknown; the message names all such keys and their values.
        """
        known = [*IRRELEVANT, *irrelevant]
        unknown = [key for key in sorted(self.unread) if not any(fnmatchcase(key, pattern) for pattern in known)]
        if unknown:
            given = ", ".join(f"{key}={self.values[key]!r}" for key in unknown)
            raise ValueError(
                f"all hyperparameters must be known, got {given}; "
                "if the trained network does not depend on them, pass the others in a JSON file as hparams"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
