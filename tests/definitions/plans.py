"""Plans: the pairs of a kernel table in the orders in which convolutions want them.

A table holds, for each tap and each row, the source row, or -1. No source comes twice at a tap.
"""

Table = list[list[int]]


def adjoint_table(table: Table, sources: int) -> Table:
    """For each tap and each source, the row that it is the source of, -1 if there is none."""
    return [[tap.index(source) if source in tap else -1 for source in range(sources)] for tap in table]


def pair_lists(table: Table, block: int) -> tuple[list[int], list[int], list[int]]:
    """Sources and rows of all pairs, by block of rows, then by tap, then by row; and where each list begins."""
    src: list[int] = []
    dst: list[int] = []
    starts = [0]
    for first in range(0, len(table[0]), block):
        for tap in table:
            rows = [row for row in range(first, first + block) if row < len(tap) and tap[row] >= 0]
            src += [tap[row] for row in rows]
            dst += rows
            starts.append(len(dst))
    return src, dst, starts


def pair_bags(table: Table, block: int) -> list[list[int]]:
    """For each row, its pairs by tap, as places in `pair_lists`."""
    _, dst, _ = pair_lists(table, block)
    return [[n for n, other in enumerate(dst) if other == row] for row in range(len(table[0]))]


def gray_rank(bits: list[int]) -> int:
    """Rank of a word in the reflected Gray code, in which successive words differ in one bit."""
    if not bits:
        return 0
    first, rest = bits[0], gray_rank(bits[1:])
    return 2 ** len(bits) - 1 - rest if first else rest


def row_order(table: Table, window: int) -> list[int]:
    """Rows by window, then by the Gray rank of the taps that they have (the rarest tap first), then by row."""
    has = [[int(source >= 0) for source in tap] for tap in table]
    rarest_first = sorted(range(len(table)), key=lambda tap: (sum(has[tap]), tap))
    rank = [gray_rank([has[tap][row] for tap in rarest_first]) for row in range(len(table[0]))]
    return sorted(range(len(rank)), key=lambda row: (row // window, rank[row], row))
