"""Types of options on the command line."""

import os


class Integers(tuple[int, ...]):
    """16,128,512 on the command line."""


class Numbers(tuple[float, ...]):
    """102.4,102.4,25.6 on the command line."""


class Names(tuple[str, ...]):
    """normal,label on the command line."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
