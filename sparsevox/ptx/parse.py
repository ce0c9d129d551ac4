"""Parsing of PTX text: instructions, registers, parameters and basic blocks of one kernel."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath

# Number of bits of a type. `b128` occurs for vectors only.
BITS = {f"{kind}{width}": width for kind in "busf" for width in (8, 16, 32, 64)} | {"pred": 1, "bf16": 16, "b128": 128}

SPECIAL = (
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"),
    *("%laneid", "%warpid"),
)
ENDS_BLOCK = {"bra", "ret", "exit", "bar.sync", "barrier.sync", "barrier.cta.sync"}


@dataclass(slots=True)
class Instruction:
    """One instruction.

    Attributes:
        number: Index within the kernel.
        name: Opcode with modifiers, e.g. `"ld.global.b32"`.
        operands: As written, e.g. `("{%r1, %r2}", "[%rd1+16]")`.
        guard: Predicate register of `@%p` and `@!%p`, or None.
        negated: True for `@!%p`.
        line: Line of the PTX text, from 1.
        where: Source line of the kernel, `"file.py:line"`.
        text: The instruction as written.
    """

    number: int
    name: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    line: int
    where: str
    text: str

    @property
    def opcode(self) -> str:
        """The name up to the first dot."""
        return self.name.partition(".")[0]


@dataclass(slots=True)
class Parameter:
    """One parameter of the kernel: its name and type, e.g. `u64`."""

    name: str
    type: str


class Kernel:
    """The parsed text of the only kernel in a PTX module.

    Attributes:
        name: Name of the kernel.
        threads: Number of threads per program.
        parameters: In order.
        registers: Type of each register by name, those of `SPECIAL` first.
        numbers: Index of each register in this order.
        shared: Offsets of the names in shared memory.
        static_shared: Bytes of shared memory that the text itself declares.
        instructions: In order.
        blocks: First and last + 1 instruction of each basic block.
        targets: Block of each label.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        header = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?([^{;]*?)\{", text, re.DOTALL)
        if header is None:
            raise ValueError("the PTX text has no .entry")
        if text.count(".entry ") > 1:
            raise NotImplementedError("more than one .entry in a PTX text")
        self.name = header[1]
        declared = re.findall(r"\.param\s+([^,]*?)([\w$]+)\s*(?:,|$)", _without_comments(header[2] or ""), re.DOTALL)
        self.parameters = [Parameter(name, _parameter_type(how)) for how, name in declared]
        sizes = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)\s*(?:,\s*(\d+)\s*)?(?:,\s*(\d+))?", header[3])
        if sizes is None:
            raise ValueError(f"{self.name} states neither .reqntid nor .maxntid")
        if any(int(size or 1) != 1 for size in sizes.groups()[1:]):
            raise NotImplementedError(f"{self.name} has threads in more than one dimension")
        self.threads = int(sizes[1])
        self.registers = dict.fromkeys(SPECIAL, "u32")
        self.shared: dict[str, int] = {}
        self.static_shared = 0
        for alignment, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]", text):
            # The memory that a launch adds (no size here) starts where the declared memory ends.
            start = -(-self.static_shared // int(alignment)) * int(alignment)
            self.shared[name] = start
            self.static_shared = start + int(size or 0)
        self.files = {
            number: PurePath(path).name for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M)
        }
        self.instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for label, line, where, statement in _statements(text, header.end(), self.files):
            if label:
                labels[statement] = len(self.instructions)
            elif statement.startswith("."):
                self._declare(statement, line)
            else:
                self.instructions.append(self._instruction(statement, line, where))
        self.numbers = {name: number for number, name in enumerate(self.registers)}
        self._split_blocks(labels)

    def _declare(self, statement: str, line: int) -> None:
        found = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL)
        if found is None:
            if statement.startswith(".pragma"):
                return
            raise NotImplementedError(f"line {line}: {statement}")
        for name in re.split(r"\s*,\s*", found[2]):
            several = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            names = [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]
            self.registers |= dict.fromkeys(names, found[1])

    def _instruction(self, statement: str, line: int, where: str) -> Instruction:
        found = re.fullmatch(r"(?:@(!?)(%?[\w$]+)\s+)?([\w.:]+)\s*(.*)", statement, re.DOTALL)
        if found is None:
            raise ValueError(f"line {line}: cannot parse {statement!r}")
        negated, guard, name, operands = found.groups()
        split = tuple(re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", operands))
        operands = tuple(operand.strip() for operand in split)
        return Instruction(len(self.instructions), name, operands, guard, bool(negated), line, where, statement)

    def _split_blocks(self, labels: dict[str, int]) -> None:
        n = len(self.instructions)
        starts = {0, n, *labels.values()}
        starts |= {i.number + 1 for i in self.instructions if i.opcode in ENDS_BLOCK or i.name in ENDS_BLOCK}
        edges = sorted(starts)
        self.blocks = list(pairwise(edges))
        number = {start: block for block, start in enumerate(edges)}
        self.targets = {label: number[start] for label, start in labels.items()}


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def _parameter_type(how: str) -> str:
    found = re.match(r"(?:\.align\s+\d+\s+)?\.(\w+)", how.strip())
    if found is None or "[" in how:
        raise NotImplementedError(f"a kernel parameter {how!r}")
    return found[1]


def _statements(text: str, start: int, files: dict[str, str]) -> Iterator[tuple[bool, int, str, str]]:
    """Labels (True) and statements (False) of the body that begins at `start`, with their lines and sources."""
    line = text.count("\n", 0, start)
    where, pending, depth = "?", "", 1
    for raw in text[start:].split("\n"):
        line += 1
        code = raw.partition("//")[0].strip()
        location = re.match(r"\.loc\s+(\d+)\s+(\d+)", code)
        if location:
            where = f"{files.get(location[1], '?')}:{location[2]}"
            continue
        while code:
            if not pending:
                label = re.match(r"([\w$]+):(?!:)\s*", code)
                if label:
                    yield True, line, where, label[1]
                    code = code[label.end() :]
                    continue
                if code[0] in "{}":  # a scope, as opposed to a list of operands
                    depth += 1 if code[0] == "{" else -1
                    if depth == 0:
                        return
                    code = code[1:].lstrip()
                    continue
            head, semicolon, code = code.partition(";")
            pending = f"{pending} {head}".strip()
            code = code.lstrip()
            if semicolon:
                yield False, line, where, re.sub(r"\s+", " ", pending)
                pending = ""
    raise ValueError("the body of the kernel does not end")
