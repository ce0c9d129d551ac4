"""How far a run is, told to whoever watches it from elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Status:
    """How far a run is.

    doing: What it does: "train" or "encode".
    done: Steps that are behind it.
    total: Steps in all.
    left: Seconds left, by the time that the steps so far have taken and the limit that there may be.
    loss: Of the last step, if there is one.
    """

    doing: str
    done: int
    total: int
    left: float
    loss: float | None = None


# Who wants to hear of a run that is watched from elsewhere. It shows no bar then.
LISTENER: ContextVar[Callable[[Status], None] | None] = ContextVar("LISTENER", default=None)


def shown(items: Sequence[T], doing: str, quiet: bool) -> Iterator[T]:
    """The same one after the other, with a bar, or with reports to a listener."""
    tell = LISTENER.get()
    if tell is None:
        yield from tqdm(items, desc=doing, disable=quiet)
        return
    start = time.monotonic()
    for number, item in enumerate(items):
        taken = (time.monotonic() - start) / max(number, 1)
        tell(Status(doing, number, len(items), taken * (len(items) - number)))
        yield item
