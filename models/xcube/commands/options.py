"""Types of options on the command line, and a value that the demo and its page share."""

MIN_COMPONENT = (
    0.01  # of the voxels of a shape; what networks that trained for minutes leave beside it is mostly smaller
)


class Integers(tuple[int, ...]):
    """16,128,512 on the command line."""


class Numbers(tuple[float, ...]):
    """102.4,102.4,25.6 on the command line."""


class Names(tuple[str, ...]):
    """normal,label on the command line."""
