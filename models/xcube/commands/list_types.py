"""Types of options that are lists with commas on the command line."""


class Integers(tuple[int, ...]):
    """16,128,512 on the command line."""


class Numbers(tuple[float, ...]):
    """102.4,102.4,25.6 on the command line."""


class Names(tuple[str, ...]):
    """normal,label on the command line."""
