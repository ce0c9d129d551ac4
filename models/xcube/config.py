"""The base class of all configurations: frozen dataclasses that convert to and from JSON and YAML values."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T", bound="Config")


@dataclass(frozen=True)
class Config:
    """A frozen dataclass whose fields are numbers, strings, None, tuples of these, or other configurations."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, as JSON and YAML have them: nested configurations to dicts, tuples to lists."""
        values: dict[str, Any] = _tuples_to_lists(asdict(self))
        return values

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any]) -> T:
        """Build a configuration from the result of `to_dict`. Fields that are missing get their defaults.

        Raises:
            ValueError: If `values` has a key that is not a field, or a field has an invalid value.
        """
        types = get_type_hints(cls)
        known = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**{name: _from_plain(value, types[name]) for name, value in values.items()})

    def _check_choices(self, **choices: Collection[str]) -> None:
        """Raise ValueError unless each field named here has one of the given values."""
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def _check_at_least(self, minimum: int, *names: str) -> None:
        """Raise ValueError unless the fields named here are at least `minimum`."""
        for name in names:
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")


def _tuples_to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples_to_lists(item) for key, item in value.items()}
    return [_tuples_to_lists(item) for item in value] if isinstance(value, tuple | list) else value


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _from_plain(value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, dict):
        return hint.from_dict(value)
    return _lists_to_tuples(value)
