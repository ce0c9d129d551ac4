"""The base of all configurations: plain dataclasses that become JSON and YAML, and back."""

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T", bound="Config")


@dataclass(frozen=True)
class Config:
    """What all configurations have in common."""

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any]) -> T:
        """The inverse of `to_dict`. Fields left out keep their defaults.

        Raises:
            ValueError: If there is an unknown field.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        hints = get_type_hints(cls)
        return cls(**{name: _typed(value, hints[name]) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _typed(value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, dict):
        return hint.from_dict(value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
