"""Types of options on the command line, and a constant that the demo and its page share."""

# Fraction of a shape below which the demo removes connected components: after minutes of training most loose bits are
# smaller.
MIN_COMPONENT = 0.01


class Integers(tuple[int, ...]):
    """16,128,512 on the command line."""


class Numbers(tuple[float, ...]):
    """102.4,102.4,25.6 on the command line."""


class Names(tuple[str, ...]):
    """normal,label on the command line."""
