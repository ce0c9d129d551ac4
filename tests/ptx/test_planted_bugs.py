"""The interpreter of PTX finds bugs: each is planted into the compiled text of a kernel of this library.

A bug is a small function that rewrites the text. The unchanged text must run without a finding; the changed one must be
reported under one of three random schedules or, where a bug changes numbers only, compute a wrong result.
"""

import copy
import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.aot

triton = pytest.importorskip("triton", reason="kernels need Triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)

from sparsevox import ptx  # noqa: E402  (as above)
from sparsevox.kernels._conv_configs import conv_flags, weight_flags  # noqa: E402  (only where kernels are compiled)
from sparsevox.kernels._reduce import reduce_rows  # noqa: E402  (only where kernels are compiled)
from sparsevox.kernels.bricks import brick_coords, brick_table, build_bricks  # noqa: E402  (as above)
from sparsevox.kernels.conv import conv_kernel, conv_weight_kernel  # noqa: E402  (only where kernels are compiled)
from sparsevox.kernels.norm import group_norm  # noqa: E402  (only where kernels are compiled)
from sparsevox.reference.bricks import build_bricks as reference_bricks  # noqa: E402  (as above)

SEEDS = (0, 1, 2)
WRONG = "the result is wrong"


# Kernels: for each a small call that launches it


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))


def coords(n: int) -> Tensor:
    """Voxels of four grids, [n, 4]."""
    return torch.cat([torch.arange(n)[:, None] * 4 // n, integers(-9, 9, n, 3)], 1)


def convolve(architecture: int, channels: int = 16) -> None:
    """Convolve 20 rows by 3 taps, in one program."""
    n, taps = 20, 3
    feats, weight = random(n, channels).half(), random(taps, channels, channels).half()
    table = integers(-1, n, taps, n)
    table[:, :4] = torch.tensor([0, n - 1, -1, -1], dtype=torch.int32)
    plan = torch.arange(n).int().flip(0), torch.arange(taps).int()[None], torch.tensor([taps]).int()
    _, _, flags = conv_flags(channels, channels, 1, torch.float16, True, architecture)
    conv_kernel[(1,)](feats, weight, feats[0].clone(), table, *plan, torch.empty_like(feats), n, taps, **flags)


def convolve_backward(architecture: int) -> None:
    """Compute the gradient of the weight from 40 pairs for each of 3 taps."""
    n, taps, channels = 40, 3, 16
    feats, grads = random(n, channels).half(), random(n, channels, seed=1).half()
    sources, targets = integers(0, n, 2, taps * n)
    starts, partials = torch.arange(taps + 1) * n, torch.empty(1, taps, channels, channels)
    tiles, flags = weight_flags(channels, channels, 1, torch.float16, architecture)
    conv_weight_kernel[(taps * tiles,)](feats, grads, sources, targets, starts, partials, 1, taps, 1, **flags)


CALLS: dict[str, Callable[[], object]] = {
    "conv_kernel sm_80": lambda: convolve(80),
    "conv_kernel sm_90": lambda: convolve(90),
    "conv_kernel sm_90 odd": lambda: convolve(90, channels=17),  # too narrow for asynchronous copies
    "conv_weight_kernel sm_80": lambda: convolve_backward(80),
    "conv_weight_kernel sm_90": lambda: convolve_backward(90),
    "coords_kernel sm_80": lambda: brick_coords(*reference_bricks(coords(60), 4)[:3], torch.empty(60, 0)),
    "encode_kernel sm_80": lambda: build_bricks(coords(1100), None),
    "insert_kernel sm_80": lambda: build_bricks(coords(300), 4, "hash"),
    "group_kernel sm_80": lambda: group_norm(random(20, 4), torch.tensor([0, 20]), None, None, 1, 1e-5),
    "reduce_kernel sm_80": lambda: reduce_rows(random(90, 3), "sum", sources=integers(-1, 90, 2, 90)),
    "table_kernel sm_80": lambda: brick_table(reference_bricks(coords(300), 4).keys),
}


@cache
def launched(name: str) -> ptx.Launch:
    """The compiled kernel and its arguments."""
    kernel, target, *_ = name.split()
    with ptx.emulate(target) as emulation:
        CALLS[name]()
    return next(launch for launch in emulation.launches if launch.kernel == kernel)


def run(launch: ptx.Launch, text: str, seed: int) -> tuple[list[ptx.Finding], list[Tensor]]:
    """The findings that are not benign, and all tensors after the launch."""
    arguments = copy.deepcopy(launch.arguments)
    shared = launch.shared_bytes
    machine = ptx.Machine(ptx.Program(text), arguments, programs=launch.programs, shared_bytes=shared, seed=seed).run()
    findings = [finding for finding in machine.findings if not finding.benign]
    return findings, [argument for argument in arguments if isinstance(argument, Tensor)]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True))


@cache
def result(name: str) -> list[Tensor]:
    """The tensors after the unchanged kernel has run."""
    launch = launched(name)
    runs = [run(launch, launch.text, seed) for seed in SEEDS]
    assert [findings for findings, _ in runs] == [[]] * len(SEEDS)
    return runs[0][1]


@pytest.mark.parametrize("name", CALLS)
def test_unchanged_kernels_are_clean(name: str) -> None:
    result(name)


# Bugs: functions that rewrite the text of a kernel

Rewrite = Callable[[str], str]


def site(text: str, pattern: str, n: int) -> re.Match[str]:
    """The n-th place that matches; negative numbers count from the end."""
    return list(re.finditer(pattern, text))[n]


def replace(text: str, pattern: str, n: int, new: str) -> str:
    """Replace the n-th place that matches; `new` may refer to groups."""
    match = site(text, pattern, n)
    return text[: match.start()] + match.expand(new) + text[match.end() :]


def remove_barrier(n: int) -> Rewrite:
    """Threads do not wait for each other: other warps have not written yet, or still read."""
    return lambda text: replace(text, r"\bbar\.sync\s+0;", n, "")


def weaken_barrier(n: int) -> Rewrite:
    """Only the threads of a warp wait for each other."""
    return lambda text: replace(text, r"\bbar\.sync\s+0;", n, "bar.warp.sync -1;")


def diverge_barrier(n: int) -> Rewrite:
    """Only threads 0 up to 39 reach a barrier: a part of the second warp, and the last warps not at all."""
    barrier = "mov.u32 %planted_tid, %tid.x; setp.lt.u32 %planted, %planted_tid, 40; @%planted bar.sync 0;"
    registers = "{\n.reg .pred %planted;\n.reg .b32 %planted_tid;\n"

    def rewrite(text: str) -> str:
        text = replace(text, r"\bbar\.sync\s+0;", n, barrier)
        return replace(text, r"(\.reqntid[^{]*)\{", 0, r"\1" + registers)

    return rewrite


def remove_wait(n: int) -> Rewrite:
    """Nobody waits for asynchronous copies: what they bring is read too early."""
    return lambda text: replace(text, r"cp\.async\.wait_group\s+\d+;", n, "")


def weaken_wait(n: int) -> Rewrite:
    """One group of copies more may be in flight: an off-by-one of the software pipeline."""

    def rewrite(text: str) -> str:
        left = int(site(text, r"cp\.async\.wait_group\s+(\d+);", n)[1])
        return replace(text, r"cp\.async\.wait_group\s+\d+;", n, f"cp.async.wait_group {left + 1};")

    return rewrite


def remove_mask(access: str, n: int) -> Rewrite:
    """A load or a store lacks its mask."""
    return lambda text: replace(text, rf"@!?%p\d+\s+(?={access})", n, "")


def remove_copy_masks(text: str) -> str:
    """Asynchronous copies lack their masks, which set the number of bytes to 0: absent rows are read."""
    return re.sub(r"(cp\.async\.c\w\.shared\.global [^;]*, (0x\w+)), %r\d+;", r"\1, \2;", text)


def overflow_products(text: str) -> str:
    """64-bit products are cut to 32 bits: offsets of a large tensor are computed as int32."""
    return re.sub(r"(mul\.lo\.s64\s+(%rd\d+),[^;]*;)", r"\1 shl.b64 \2, \2, 32; shr.s64 \2, \2, 32;", text)


def split_swap(text: str) -> str:
    """Compare-and-swap becomes a load, a comparison and a store."""
    pattern = r"atom\.global\.relaxed\.gpu\.cas\.b(\d+)\s*(%\w+), (\[[^]]*\]), (%\w+), (%\w+);"
    return replace(text, pattern, 0, r"ld.global.b\1 \2, \3; st.global.b\1 \3, \5;")


def store_for_atomic(n: int) -> Rewrite:
    """An atomic becomes a store: programs overwrite each other's results."""
    pattern = r"(?:red|atom)\.global\.gpu\.relaxed\.m\w+\.s(\d+)\s*(?:%\w+, )?(?=\[)"  # with or without the old value
    return lambda text: replace(text, pattern, n, r"st.global.b\1 ")


def store_from_all_programs(text: str) -> str:
    """Every program stores its number to the first element of an output."""
    (parameter,) = re.findall(r"ld\.param\.\w64\s+%rd\d+, \[(\w+_param_5)\];", text)
    registers = "{\n.reg .b64 %planted;\n.reg .b32 %planted_program;\n"
    planted = rf"mov.u32 %planted_program, %ctaid.x; ld.param.b64 %planted, [{parameter}]; "
    text = replace(text, r"\n\s*ret;", -1, f"\n{planted}st.global.b32 [%planted], %planted_program;\nret;")
    return replace(text, r"(\.reqntid[^{]*)\{", 0, r"\1" + registers)


def remove_store(n: int) -> Rewrite:
    """Shared memory is read that was not written."""
    return lambda text: replace(text, r"\bst\.shared\b[^;]*;", n, "")


def remove_instruction(name: str) -> Rewrite:
    """All instructions of a name are missing."""
    return lambda text: re.sub(rf"\b{re.escape(name)}\b[^;{{]*;", "", text)


def misalign(access: str, n: int) -> Rewrite:
    """An address is 2 bytes too large."""

    def rewrite(text: str) -> str:
        pattern = rf"\b({access}\b[^;]*?\[\s*%\w+)\s*(?:\+\s*(\d+)\s*)?\]"
        offset = int(site(text, pattern, n)[2] or 0) + 2
        return replace(text, pattern, n, rf"\1+{offset}]")

    return rewrite


def shift_shared(access: str, n: int) -> Rewrite:
    """An address in shared memory lies 64 kB too far: behind what the launch has allocated."""
    return lambda text: replace(text, rf"\b({access}\b[^;]*?\[\s*%\w+)[^]]*\]", n, r"\1+65536]")


class Bug(NamedTuple):
    """A bug, the kernel that gets it, and the pattern of the finding."""

    kernel: str
    rewrite: Rewrite
    finding: str


RACE = "race in shared memory"
FLIGHT = "cp.async fills, before the wait"
BOUNDS = "address out of bounds"
COLLISION = "race in global memory: (read after write|write after (read|write))$|store different values"
BUGS = (
    # 1. A barrier is missing.
    Bug("conv_kernel sm_80", remove_barrier(0), "read after write"),  # the list of taps, which one thread copies
    Bug("conv_kernel sm_80", remove_barrier(-1), RACE),
    Bug("conv_kernel sm_90", remove_barrier(0), "read after write"),
    Bug("conv_kernel sm_90", remove_barrier(-1), RACE),
    Bug("conv_weight_kernel sm_80", remove_barrier(-1), "read after write"),  # the transposition before the store
    Bug("encode_kernel sm_80", remove_barrier(-1), RACE),  # the reduction across warps
    Bug("group_kernel sm_80", remove_barrier(1), RACE),
    # 2. A wait for asynchronous copies is missing.
    Bug("conv_kernel sm_80", remove_wait(0), FLIGHT),
    Bug("conv_kernel sm_90", remove_wait(1), FLIGHT),
    Bug("conv_weight_kernel sm_80", remove_wait(2), FLIGHT),
    # 3. A wait is too weak.
    Bug("conv_kernel sm_80", weaken_wait(1), FLIGHT),
    Bug("conv_kernel sm_90", weaken_wait(0), FLIGHT),
    # 4. A mask is missing.
    Bug("conv_kernel sm_80", remove_mask("st.global", -1), COLLISION),  # rows beyond the last one are row 0
    Bug("conv_kernel sm_80", remove_copy_masks, BOUNDS),
    Bug("coords_kernel sm_80", remove_mask("st.global", -1), COLLISION),
    Bug("reduce_kernel sm_80", remove_mask("st.global", -1), BOUNDS),
    Bug("reduce_kernel sm_80", remove_mask("ld.global", -1), BOUNDS),
    # 6. An atomic is none, or programs store to one place.
    Bug("table_kernel sm_80", split_swap, COLLISION),
    Bug("insert_kernel sm_80", split_swap, COLLISION),
    Bug("encode_kernel sm_80", store_for_atomic(-1), "race in global memory: write after write"),
    Bug("conv_weight_kernel sm_90", store_from_all_programs, "race in global memory: write after write"),
    # 7. Shared memory is read that was not written.
    Bug("conv_kernel sm_80", remove_store(0), "uninitialized|" + WRONG),
    Bug("encode_kernel sm_80", remove_store(0), "uninitialized"),
    Bug("group_kernel sm_80", remove_store(0), "uninitialized"),
    # 8. Fences and waits of wgmma are missing.
    Bug("conv_kernel sm_90 odd", remove_instruction("fence.proxy.async.shared::cta"), "without a fence.proxy.async"),
    Bug("conv_kernel sm_90", remove_instruction("wgmma.wait_group.sync.aligned"), "before wgmma.wait_group"),
    Bug("conv_kernel sm_90", remove_instruction("wgmma.commit_group.sync.aligned"), "before wgmma.wait_group"),
    # 9. An address is misaligned.
    Bug("conv_kernel sm_80", misalign("ldmatrix", 0), "misaligned"),
    Bug("coords_kernel sm_80", misalign("ld.global", 0), "misaligned"),
    Bug("group_kernel sm_80", misalign("st.shared", 0), "misaligned"),
    # 10. A barrier is reached by some threads only.
    Bug("conv_kernel sm_80", diverge_barrier(0), "barrier"),
    Bug("conv_kernel sm_90", diverge_barrier(-1), "barrier"),
    Bug("group_kernel sm_80", diverge_barrier(0), "barrier"),
    # 11. A barrier holds for a warp only.
    Bug("conv_kernel sm_80", weaken_barrier(0), RACE),
    Bug("conv_kernel sm_90", weaken_barrier(-1), RACE),
    Bug("encode_kernel sm_80", weaken_barrier(-1), RACE),
    # 12. An address lies outside the shared memory of the launch.
    Bug("conv_kernel sm_80", shift_shared("ldmatrix", 0), BOUNDS),
    Bug("conv_kernel sm_90", shift_shared("st.shared", 0), BOUNDS),
)


def name_of(bug: Bug) -> str:
    return f"{bug.kernel} {bug.rewrite.__qualname__.partition('.')[0]}"


@pytest.mark.parametrize("bug", BUGS, ids=name_of)
def test_planted_bugs_are_found(bug: Bug) -> None:
    launch = launched(bug.kernel)
    text, expected = bug.rewrite(launch.text), result(bug.kernel)
    assert text != launch.text
    seen = []
    for seed in SEEDS:
        findings, tensors = run(launch, text, seed)
        seen += [finding.kind for finding in findings] + [WRONG] * (not equal(tensors, expected))
        if any(re.search(bug.finding, kind) for kind in seen):
            return
    pytest.fail(f"expected {bug.finding!r}, got {sorted(set(seen))}")


# 5. Offsets beyond 2 ** 31


@pytest.mark.parametrize("overflows", [False, True])
def test_offsets_in_32_bits_are_found(overflows: bool) -> None:
    with ptx.emulate("sm_80", sparse=8 << 30) as emulation:
        assert emulation.memory
        feats = emulation.memory.zeros((120_000_000, 20), torch.float16)  # 2.4 * 10 ** 9 elements
        feats[-1], feats[-3] = 1, 2
        out = reduce_rows(feats, "sum", sources=torch.tensor([[feats.shape[0] - 1, 5], [feats.shape[0] - 3, -1]]).int())
    assert out[:, 0].tolist() == [3, 0]
    (launch,) = emulation.launches
    text = overflow_products(launch.text) if overflows else launch.text
    out.zero_()
    machine = ptx.Machine(ptx.Program(text), launch.arguments, programs=launch.programs, checked=False).run()
    right = out[:, 0].tolist() == [3, 0]
    assert bool(machine.findings) is overflows
    assert right is not overflows
