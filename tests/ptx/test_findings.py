"""What the interpreter of PTX reports: each kind of violation by a kernel with it, and by one that is right."""

import pytest
import torch

from sparsevox import ptx
from tests.ptx.assemble import kinds, module, run

# The address of element %tid of the tensors k_0 and k_1 (int32) in %d1 and %d3, of shared memory in %r2.
START = """
mov.u32 %r1, %tid.x;
ld.param.u64 %d0, [k_0];
mad.wide.u32 %d1, %r1, 4, %d0;
mov.u32 %r3, buffer;
mad.lo.u32 %r2, %r1, 4, %r3;
"""
SEEDS = pytest.mark.parametrize("seed", [None, 0, 1])


def found(body: str, *arguments: torch.Tensor, shared: int = 1024, **options) -> set[tuple[str, bool]]:
    """Kind and harmlessness of the findings of a kernel that begins with START."""
    arguments = arguments or (torch.zeros(256, dtype=torch.int32),)
    return {(kind, benign) for kind, _, benign in kinds(run(START + body, *arguments, shared=shared, **options))}


# Addresses


def test_addresses_out_of_bounds() -> None:
    body = "st.global.b32 [%d1], %r1;"
    x = torch.zeros(33, dtype=torch.int32)
    assert found(body, x[:32]) == set()
    assert found(body, x[:31]) == {("address out of bounds", False)}
    assert x.tolist() == [*range(32), 0]
    assert found("ld.global.b32 %r5, [%d1+-4];", x) == {("address out of bounds", False)}
    assert found("ld.global.b32 %r5, [4096];", x) == {("address out of bounds", False)}


def test_neighboring_tensors_are_out_of_bounds() -> None:
    both = torch.arange(64, dtype=torch.int32)
    x, y = both[:32], both[32:]
    assert found("ld.global.b32 %r5, [%d1+128];\nld.param.u64 %d5, [k_1];", x, y) == {("address out of bounds", False)}


def test_addresses_in_shared_memory() -> None:
    assert found("st.shared.b32 [%r2], %r1;", shared=128) == set()
    assert found("st.shared.b32 [%r2], %r1;", shared=124) == {("address out of bounds", False)}
    assert found("st.shared.b32 [%r2+-4], %r1;", shared=128) == {("address out of bounds", False)}


def test_misaligned_addresses() -> None:
    assert found("ld.global.b32 %r5, [%d1+2];") == {("misaligned address", False)}
    assert found("ld.global.v2.b32 {%r5, %r6}, [%d1];") == {("misaligned address", False)}
    assert found("and.b64 %d1, %d1, -8;\nld.global.v2.b32 {%r5, %r6}, [%d1];") == set()
    assert found("st.shared.b32 [%r2+1], %r1;") == {("misaligned address", False)}


def test_a_finding_names_its_line_and_counts_threads() -> None:
    (finding,) = run(START + "\nld.global.b32 %r5, [%d1];", torch.zeros(30, dtype=torch.int32), shared=8)
    assert (finding.kernel, finding.where, finding.count) == ("k", "kernel.py:7", 2)
    assert finding.example == "program 0, thread 30: ld.global.b32 %r5, [%d1]"


# Shared memory


def test_uninitialized_shared_memory() -> None:
    assert found("ld.shared.b32 %r5, [%r2];") == {("read of uninitialized shared memory", False)}
    assert found("st.shared.b32 [%r2], 1;\nld.shared.b32 %r5, [%r2];") == set()


OTHER = "xor.b32 %r4, %r2, {};\n"  # the element of another thread: of the same warp (4), or of another one (128)


@SEEDS
@pytest.mark.parametrize(
    ("other", "barrier", "right"), [(4, "", False), (128, "", False), (4, "bar.warp.sync -1;", True)]
)
def test_reads_after_writes(other: int, barrier: str, right: bool, seed: int | None) -> None:
    body = "st.shared.b32 [%r2], %r1;\n{}\n" + OTHER.format(other) + "ld.shared.b32 %r5, [%r4];"
    assert found(body.format("bar.sync 0;"), threads=64, seed=seed) == set()
    kinds_found = {kind for kind, _ in found(body.format(barrier), threads=64, seed=seed)}
    races = {kind for kind in kinds_found if kind.startswith("race in shared memory")}
    # Where the reader runs first, it reads what nobody has written, and then is overtaken.
    assert kinds_found - races <= {"read of uninitialized shared memory"}
    assert bool(races) != right


def test_the_barrier_of_a_warp_does_not_order_warps() -> None:
    body = "st.shared.b32 [%r2], %r1;\nbar.warp.sync -1;\n" + OTHER.format(128) + "ld.shared.b32 %r5, [%r4];"
    assert found(body, threads=64) == {("race in shared memory: read after write", False)}


@pytest.mark.parametrize("other", [4, 128])
def test_writes_after_reads(other: int) -> None:
    body = "st.shared.b32 [%r2], %r1;\nbar.sync 0;\nld.shared.b32 %r5, [%r2];\n{}\n" + OTHER.format(other)
    body += "st.shared.b32 [%r4], 500;"
    assert found(body.format("bar.sync 0;"), threads=64) == set()
    assert found(body.format(""), threads=64) == {("race in shared memory: write after read", False)}


def test_a_barrier_orders_all_earlier_readers() -> None:
    """Two warps read, one after the other; a third one writes."""
    body = """
    st.shared.b32 [%r2], 0;
    bar.sync 0;
    setp.lt.u32 %p1, %r1, 64;
    @!%p1 bra $skip;
    ld.shared.b32 %r5, [buffer];
    $skip:
    {}
    setp.eq.u32 %p2, %r1, 64;
    @%p2 st.shared.b32 [buffer], 7;
    """
    assert found(body.format("bar.sync 0;"), threads=96) == set()
    assert found(body.format(""), threads=96) == {("race in shared memory: write after read", False)}


@SEEDS
def test_writes_after_writes(seed: int | None) -> None:
    body = "st.shared.b32 [%r2], %r1;\n{}\n" + OTHER.format(128) + "st.shared.b32 [%r4], 5;"
    assert found(body.format("bar.sync 0;"), threads=64, seed=seed) == set()
    assert ("race in shared memory: write after write", False) in found(body.format(""), threads=64, seed=seed)


def test_writes_of_the_same_value_are_benign() -> None:
    body = "st.shared.b32 [%r2], 5;\n" + OTHER.format(128) + "st.shared.b32 [%r4], 5;"
    assert found(body, threads=64) == {("race in shared memory: write after write of the same value", True)}


def test_a_benign_writer_still_counts_for_what_follows() -> None:
    """Both warps write 5 to the same places; one of them then writes 6, and the other may come later."""
    body = """
    and.b32 %r4, %r1, 31;
    mad.lo.u32 %r4, %r4, 4, %r3;
    st.shared.b32 [%r4], 5;
    {}
    setp.lt.u32 %p1, %r1, 32;
    @%p1 st.shared.b32 [%r4], 6;
    """
    benign = ("race in shared memory: write after write of the same value", True)
    same = ("threads store the same values to one address at once", True)
    assert found(body.format("bar.sync 0;"), threads=64) <= {benign, same}
    assert ("race in shared memory: write after write", False) in found(body.format(""), threads=64)


@SEEDS
def test_threads_that_store_to_one_address_at_once(seed: int | None) -> None:
    kind = "threads store {} values to one address at once"
    assert found("st.shared.b32 [buffer], %r1;", seed=seed) == {(kind.format("different"), False)}
    assert found("st.shared.b32 [buffer], 3;", seed=seed) == {(kind.format("the same"), True)}
    assert found("st.global.b32 [%d0], %r1;", seed=seed) == {(kind.format("different"), False)}


def test_colliding_stores_take_effect_in_a_random_order() -> None:
    winners = set()
    for seed in range(8):
        x = torch.zeros(1, dtype=torch.int32)
        found("st.global.b32 [%d0], %r1;", x, seed=seed)
        winners.add(x.item())
    assert len(winners) > 3


# Global memory


PROGRAM = "mov.u32 %r6, %ctaid.x;\n"


@SEEDS
def test_races_between_programs(seed: int | None) -> None:
    write = PROGRAM + "st.global.b32 [%d1], {};"
    assert {benign for _, benign in found(write.format("%r6"), programs=2, seed=seed)} == {False}
    assert {benign for _, benign in found(write.format("%r1"), programs=2, seed=seed)} == {True}
    pause = PROGRAM + "setp.eq.u32 %p1, %r6, 0;\n@%p1 bra $after;\nadd.s32 %r7, %r7, 1;\n$after:\n"
    late = pause + "st.global.b32 [%d1], %r6;\n@%p1 st.global.b32 [%d1], 5;"
    assert ("race in global memory: write after write", False) in found(late, programs=2, seed=seed)
    own = PROGRAM + "mad.wide.u32 %d1, %r6, 128, %d1;\nst.global.b32 [%d1], 1;\n"
    assert found(own, programs=2, seed=seed) == set()
    read = own + "ld.global.b32 %r7, [%d0];"
    kinds_found = {kind for kind, _ in found(read, programs=2, seed=seed)}
    assert kinds_found
    assert all(kind.startswith("race in global memory") for kind in kinds_found)


def test_a_barrier_orders_a_program_but_not_others() -> None:
    body = "st.global.b32 [%d1], %r1;\nbar.sync 0;\nxor.b32 %r4, %r1, 32;\nmad.wide.u32 %d2, %r4, 4, %d0;\n"
    body += "ld.global.b32 %r7, [%d2];"
    assert found(body, threads=64) == set()
    assert found(body.replace("bar.sync 0;", ""), threads=64) == {("race in global memory: read after write", False)}
    x = torch.zeros(128, dtype=torch.int32)
    assert ("race in global memory: read after write", False) in found(body, x, threads=64, programs=2)


@SEEDS
def test_atomics_do_not_race_with_each_other(seed: int | None) -> None:
    x = torch.zeros(4, dtype=torch.int32)
    assert found("red.global.gpu.relaxed.add.s32 [%d0], 1;", x, programs=5, seed=seed) == set()
    assert x[0] == 160
    body = "red.global.gpu.relaxed.add.s32 [%d0], 1;\nld.global.b32 %r7, [%d0];"
    assert {kind.partition(":")[0] for kind, _ in found(body, x, programs=2, seed=seed)} == {"race in global memory"}


def test_reading_what_nobody_writes_is_no_race() -> None:
    body = PROGRAM + "ld.global.b32 %r7, [%d0];\nld.param.u64 %d4, [k_1];\nmad.wide.u32 %d4, %r6, 128, %d4;\n"
    body += "mad.wide.u32 %d4, %r1, 4, %d4;\nst.global.b32 [%d4], %r7;"
    x, y = torch.full((1,), 9, dtype=torch.int32), torch.zeros(96, dtype=torch.int32)
    assert found(body, x, y, programs=3) == set()
    assert y.tolist() == [9] * 96


def test_arguments_that_share_memory_race() -> None:
    body = PROGRAM + "ld.global.b32 %r7, [%d0];\nld.param.u64 %d4, [k_1];\nst.global.b32 [%d4], %r6;"
    x = torch.zeros(4, dtype=torch.int32)
    assert ("race in global memory: write after read", False) in found(body, x, x, programs=2)


# Asynchronous copies

COPY = """
cp.async.ca.shared.global [%r2], [%d1], 4;
cp.async.commit_group;
{}
ld.shared.b32 %r5, [%r4];
cp.async.wait_group 0;
"""


def copies(between: str, other: int = 0, **options) -> set[tuple[str, bool]]:
    return found(OTHER.format(other) + COPY.format(between), **options)


def test_a_copy_must_be_waited_for() -> None:
    early = {("access to shared memory that cp.async fills, before the wait", False)}
    assert copies("cp.async.wait_group 0;") == set()
    assert copies("cp.async.wait_all;") == set()
    assert copies("") == early
    assert copies("cp.async.wait_group 1;") == early
    assert copies("bar.sync 0;") == early


@SEEDS
@pytest.mark.parametrize("other", [4, 128])
def test_a_copy_is_visible_to_the_waiting_thread_only(other: int, seed: int | None) -> None:
    assert copies("cp.async.wait_group 0;\nbar.sync 0;", other, threads=64, seed=seed) == set()
    assert copies("cp.async.wait_group 0;", other, threads=64, seed=seed) != set()
    assert copies("bar.sync 0;\ncp.async.wait_group 0;", other, threads=64, seed=seed) != set()


def test_a_barrier_of_the_warp_is_enough_for_its_lanes() -> None:
    assert copies("cp.async.wait_group 0;\nbar.warp.sync -1;", 4) == set()
    assert copies("cp.async.wait_group 0;\nbar.warp.sync -1;", 128, threads=64) == {
        ("race in shared memory: read after write", False)
    }


def test_ldmatrix_hands_copies_to_other_lanes() -> None:
    body = """
    mad.lo.u32 %r2, %r1, 16, %r3;
    and.b64 %d1, %d0, -16;
    cp.async.cg.shared.global [%r2], [%d1], 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    {}
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r5}}, [%r2];
    """
    assert found(body.format("bar.warp.sync -1;")) == set()
    assert found(body.format("")) == {("race in shared memory: read after write", False)}


def test_a_copy_over_what_others_read() -> None:
    body = "st.shared.b32 [%r2], 1;\nbar.sync 0;\nxor.b32 %r4, %r2, 128;\nld.shared.b32 %r5, [%r4];\n{}\n"
    body += "cp.async.ca.shared.global [%r2], [%d1], 4;\ncp.async.commit_group;\ncp.async.wait_group 0;"
    assert found(body.format("bar.sync 0;"), threads=64) == set()
    assert found(body.format(""), threads=64) == {("race in shared memory: write after read", False)}


def test_a_copy_that_nobody_waits_for() -> None:
    body = "cp.async.ca.shared.global [%r2], [%d1], 4;\ncp.async.commit_group;"
    assert found(body) == {("cp.async is never waited for", False)}
    assert found(body + "\ncp.async.wait_group 0;") == set()


def test_copies_of_zero_bytes_read_nothing_and_write_zeros() -> None:
    x, y = torch.arange(1, 33, dtype=torch.int32), torch.full((32,), 7, dtype=torch.int32)
    body = """
    setp.lt.u32 %p1, %r1, 30;
    selp.b32 %r6, 4, 0, %p1;
    cp.async.ca.shared.global [%r2], [%d1], 4, %r6;
    cp.async.wait_all;
    ld.shared.b32 %r5, [%r2];
    ld.param.u64 %d2, [k_1];
    mad.wide.u32 %d3, %r1, 4, %d2;
    st.global.b32 [%d3], %r5;
    """
    assert found(body, x[:30], y) == set()
    assert y.tolist() == [*range(1, 31), 0, 0]
    assert found(body, x[:29], y) == {("address out of bounds", False)}


def test_a_copy_is_executed_as_late_as_the_wait_allows() -> None:
    """The source changes between the copy and the wait."""
    x, y = torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    body = """
    cp.async.ca.shared.global [%r2], [%d1], 4;
    st.global.b32 [%d1], -1;
    cp.async.wait_all;
    ld.shared.b32 %r5, [%r2];
    ld.param.u64 %d2, [k_1];
    mad.wide.u32 %d3, %r1, 4, %d2;
    st.global.b32 [%d3], %r5;
    """
    found(body, x, y)
    assert y.tolist() == [-1] * 32


# Barriers and warps


def test_barriers_that_not_all_threads_reach() -> None:
    half = "setp.lt.u32 %p1, %r1, {};\n@%p1 bra $after;\nbar.sync 0;\n$after:\n"
    missing = {kind for kind, _ in found(half.format(16), threads=64)}
    assert "barrier without all threads of a warp" in missing
    assert {kind for kind, _ in found(half.format(32), threads=64)} == {"barrier after some threads have ended"}
    different = half.format(32) + "bar.sync 0;"
    assert "threads of a program wait at different barriers" in {kind for kind, _ in found(different, threads=64)}
    assert found("setp.lt.u32 %p1, %r1, 64;\n@%p1 bra $after;\nbar.sync 0;\n$after:\n", threads=64) == set()


@SEEDS
def test_a_guarded_barrier(seed: int | None) -> None:
    body = "setp.lt.u32 %p1, %r1, {};\n@%p1 bar.sync 0;\nadd.s32 %r5, %r5, 1;"
    assert found(body.format(64), threads=64, seed=seed) == set()
    assert found(body.format(32), threads=64, seed=seed) == {("barrier after some threads have ended", False)}


@pytest.mark.parametrize(
    "instruction", ["shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;", "redux.sync.add.s32 %r5, %r1, -1;", "bar.warp.sync -1;"]
)
def test_instructions_of_a_warp_need_all_threads_of_the_mask(instruction: str) -> None:
    body = "setp.lt.u32 %p1, %r1, {};\n@%p1 bra $after;\n" + instruction + "\n$after:"
    opcode = instruction.partition(".")[0]
    assert found(body.format(0)) == set()
    assert found(body.format(8)) == {(f"{opcode}.sync and not all threads of its mask are there", False)}
    assert found(body.format(8).replace("-1;", "0xffffff00;")) == set()


def test_threads_that_run_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsevox.ptx.machine.STEP_LIMIT", 1000)
    with pytest.raises(ptx.KernelError, match="still run"):
        found("$again:\nbra $again;")


# What is not known


@pytest.mark.parametrize(
    "instruction",
    [
        "mbarrier.init.shared.b64 [buffer], 1;",
        "add.sat.s32 %r5, %r1, %r1;",
        "bar.sync 1;",
        "ld.global.b128 %d5, [%d1];",
    ],
)
def test_unknown_instructions_are_named(instruction: str) -> None:
    text = module(START + instruction, shared=64)
    line = 1 + text.split("\n").index(instruction)
    with pytest.raises(NotImplementedError, match=f"line {line} of the PTX"):
        ptx.Program(text)


def test_arguments_are_checked() -> None:
    program = ptx.Program(module(START, shared=64))
    with pytest.raises(ValueError, match="has 1 parameters, got 2 arguments"):
        ptx.Machine(program, [torch.zeros(1), torch.zeros(1)], programs=1)


# Programs that were chosen, and memory that is not there


def test_chosen_programs() -> None:
    x = torch.zeros(8, dtype=torch.int32)
    body = PROGRAM + "mad.wide.u32 %d1, %r6, 4, %d0;\nst.global.b32 [%d1], 1;"
    run(START + body, x, programs=8, shared=8, only=[2, 5])
    assert x.tolist() == [0, 0, 1, 0, 0, 1, 0, 0]


def test_sparse_memory() -> None:
    n = 3 << 32
    x = ptx.sparse_memory(16 << 30).zeros((n,), torch.uint8)
    body = "ld.param.u64 %d0, [k_0];\nadd.s64 %d1, %d0, {};\nst.global.b8 [%d1], 7;"
    assert run(body.format(n - 1), x, checked=False) == []
    assert x[-1] == 7
    assert [finding.kind for finding in run(body.format(n), x, checked=False)] == ["address out of bounds"]
