"""Small kernels in PTX for the tests of its interpreter."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from sparsevox import ptx

DTYPES = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


def module(body: str, *, parameters: int = 1, threads: int = 32, shared: int = 0, target: str = "sm_80") -> str:
    """The text of a kernel `k` with 64-bit parameters `k_0`, `k_1`, ... and static shared memory `buffer`.

    Registers are declared by their names: %p1 a predicate, %h1 16 bits, %r1 32, %d1 64.
    """
    kinds = {"p": "pred", "h": "b16", "r": "b32", "d": "b64"}
    declared = "".join(f"\t.reg .{kind} {name};\n" for name, kind in _registers(body, kinds))
    listed = ", ".join(f".param .u64 .ptr .global .align 1 k_{i}" for i in range(parameters))
    memory = f".shared .align 16 .b8 buffer[{shared}];\n" if shared else ""
    return (
        f'.version 8.0\n.target {target}\n.address_size 64\n.file 1 "kernel.py"\n{memory}'
        f".visible .entry k({listed})\n.reqntid {threads}\n{{\n{declared}{numbered(body)}\n\tret;\n}}\n"
    )


def _registers(body: str, kinds: dict[str, str]) -> list[tuple[str, str]]:
    names = sorted(set(re.findall(r"%[phrd]\d+\b", body)))
    return [(name, kinds[name[1]]) for name in names]


def numbered(body: str) -> str:
    """Lines of code with a source location each: line i of the body is line i of kernel.py."""
    return "\n".join(f"\t.loc 1 {i} 0\n{line}" for i, line in enumerate(body.strip("\n").split("\n"), 1))


def run(
    body: str, *arguments: Any, programs: int = 1, threads: int = 32, shared: int = 0, **options: Any
) -> list[ptx.Finding]:
    """Run a kernel and return what was found."""
    program = ptx.Program(module(body, parameters=max(1, len(arguments)), threads=threads, shared=shared))
    return ptx.Machine(program, arguments, programs=programs, **options).run().findings


def kinds(findings: list[ptx.Finding]) -> set[tuple[str, str, bool]]:
    """Kind, place and harmlessness of findings."""
    return {(finding.kind, finding.where, finding.benign) for finding in findings}


def evaluate(instruction: str, result: str, types: Sequence[str], columns: Sequence[Sequence[int]]) -> list[int]:
    """Results, as unsigned bits, of an instruction of `{d}` and the operands `{0}`, `{1}`, ... for rows of operands.

    `types` are those of the operands, e.g. `"b32"` or `"pred"`; values are bits.
    """
    n = len(columns[0])
    bits = [32 if kind == "pred" else int(kind[1:]) for kind in types]
    tensors = [
        torch.tensor([_signed(value, width) for value in column], dtype=DTYPES[width])
        for column, width in zip(columns, bits, strict=True)
    ]
    names = [register(kind, 10 + i) for i, kind in enumerate(types)]
    target = register(result, 30)
    out_bits = 32 if result == "pred" else int(result[1:])
    out = torch.zeros(n, dtype=DTYPES[out_bits])
    lines = [
        "mov.u32 %r1, %tid.x;",
        "mov.u32 %r2, %ctaid.x;",
        "mad.lo.s32 %r3, %r2, 32, %r1;",
        f"setp.ge.s32 %p1, %r3, {n};",
        "@%p1 bra $done;",
    ]
    for i, (width, name, kind) in enumerate(zip(bits, names, types, strict=True)):
        loaded = "%r5" if kind == "pred" else name
        lines += [f"ld.param.u64 %d1, [k_{i}];", f"mad.wide.s32 %d2, %r3, {width // 8}, %d1;"]
        lines += [f"ld.global.b{width} {loaded}, [%d2];"]
        lines += [f"setp.ne.b32 {name}, %r5, 0;"] * (kind == "pred")
    lines += [instruction.format(*names, d=target) + ";"]
    stored = "%r6" if result == "pred" else target
    lines += [f"selp.b32 %r6, 1, 0, {target};"] * (result == "pred")
    lines += [f"ld.param.u64 %d1, [k_{len(types)}];", f"mad.wide.s32 %d2, %r3, {out_bits // 8}, %d1;"]
    lines += [f"st.global.b{out_bits} [%d2], {stored};", "$done:"]
    assert not run("\n".join(lines), *tensors, out, programs=-(-n // 32))
    return [int(value) & ((1 << out_bits) - 1) for value in out.tolist()]


def register(kind: str, number: int) -> str:
    """A register for a type; those of 8 bits are held by 16."""
    return (
        f"%{ {'pred': 'p', '8': 'h', '16': 'h', '32': 'r', '64': 'd'}[kind if kind == 'pred' else kind[1:]] }{number}"
    )


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if bits > 8 and value >> (bits - 1) else value
