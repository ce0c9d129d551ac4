"""What a run of a kernel reports: races, bad addresses, missing waits."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Finding:
    """One kind of violation at one place of a kernel.

    Attributes:
        kind: What is wrong, e.g. `"race in shared memory: read after write"`.
        kernel: Name of the kernel.
        where: Source of the instruction, `"file.py:line"`.
        count: Number of threads that did it, over all executions.
        example: The first of them: its program, thread and instruction.
        benign: True for collisions that store the same value, whose result does not depend on the order.
    """

    kind: str
    kernel: str
    where: str
    count: int
    example: str
    benign: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}, {self.where}: {self.kind} ({self.count} times); first: {self.example}"


class KernelError(AssertionError):
    """Raised for kernels that violate the rules of PTX. Its message lists the findings."""


@dataclass
class Findings:
    """The findings of one kernel, one per kind and place."""

    kernel: str
    found: dict[tuple[str, str, bool], Finding] = field(default_factory=dict)

    def add(self, kind: str, where: str, count: int, example: str, benign: bool = False) -> None:
        """Report `count` threads."""
        known = self.found.setdefault((kind, where, benign), Finding(kind, self.kernel, where, 0, example, benign))
        known.count += int(count)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found.values())


def raise_for(findings: list[Finding]) -> None:
    """Raise a `KernelError` that lists the findings, unless all of them are benign."""
    serious = [finding for finding in findings if not finding.benign]
    if serious:
        raise KernelError("\n".join(["", *map(str, serious)]))
