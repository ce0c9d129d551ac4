"""wgmma: asynchronous products by groups of four warps, whose operands lie in shared memory.

A product is computed when it is issued, and is in flight until a wait for the commit group that holds it. Until then
its accumulators must not be touched, and the shared memory that it reads must not be written. It reads through the
asynchronous proxy, so that what `st` has written needs a proxy fence first. Copies by `cp.async` are not held to that:
Triton 3.6, like NVIDIA's own kernels, waits for them and passes a barrier without the fence.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsevox.ptx import matrix
from sparsevox.ptx.forms import form
from sparsevox.ptx.parse import Instruction, Kernel
from sparsevox.ptx.races import PROGRAM, WARP_SIZE
from sparsevox.ptx.registers import Lanes, Operands, Reader, Step
from sparsevox.ptx.tensor_cores import fragments, read_chunks, whole

GROUP = 4 * WARP_SIZE


@dataclass
class Product:
    """A product in flight, of some groups of warps.

    Attributes:
        groups: int64 [G] indices in the batch.
        commits: int64 [G] commit groups that each had closed when it was issued.
        granules: Granules of shared memory that each reads, int64 [G, k].
        registers: Numbers of the registers of D, int64 [R].
    """

    instruction: Instruction
    groups: np.ndarray
    commits: np.ndarray
    granules: np.ndarray
    registers: np.ndarray

    def part(self, chosen: np.ndarray) -> "Product":
        """The product of some of the groups, bool [G]."""
        parts = self.groups[chosen], self.commits[chosen], self.granules[chosen]
        return Product(self.instruction, *parts, self.registers)


class Products:
    """The products in flight of a batch of programs.

    Attributes:
        commits: Commit groups that each group of warps has closed, int64 [groups].
        pending: True for registers of products in flight, bool [registers, groups].
    """

    def __init__(self, batch: Any) -> None:
        groups = len(batch.threads) // GROUP
        self.shadow = batch.shared.shadow
        self.products: list[Product] = []
        self.commits = np.zeros(groups, np.int64)
        self.pending = np.zeros((len(batch.registers), groups), bool)

    def add(self, product: Product) -> None:
        """Put a product in flight."""
        self.products.append(product)
        self._mark(product)

    def _mark(self, product: Product) -> None:
        self.pending[product.registers[:, None], product.groups] = True
        if self.shadow is not None:
            self.shadow.in_use[product.granules] = 1 + product.instruction.number

    def wait(self, lanes: Lanes, left: int) -> None:
        """End the products of all commit groups of these threads but the last `left` ones."""
        waiting = np.isin(np.arange(len(self.commits)), lanes.threads // GROUP)
        flying, self.products = self.products, []
        for product in flying:
            done = waiting[product.groups] & (product.commits + left < self.commits[product.groups])
            if done.any():
                self._end(product.part(done), lanes.batch)
            if not done.all():
                self.products.append(product.part(~done))
        for product in self.products:
            self._mark(product)

    def _end(self, product: Product, batch: Any) -> None:
        self.pending[product.registers[:, None], product.groups] = False
        if self.shadow is not None:
            # It counts as a read at this time, by the whole group: a write needs a barrier after the wait.
            self.shadow.in_use[product.granules] = 0
            readers = Lanes(batch, product.groups * GROUP)
            self.shadow.record(self.shadow.reads, readers, product.instruction, product.granules, PROGRAM)


def products_of(lanes: Lanes) -> Products:
    """The products in flight of the batch."""
    batch = lanes.batch
    if batch.products is None:
        batch.products = Products(batch)
    products: Products = batch.products
    return products


def registers_of(kernel: Kernel) -> set[str]:
    """Names of the accumulators of all products. Registers of A are left out: Triton 3.6 overwrites them in flight."""
    products = [i for i in kernel.instructions if i.name.startswith("wgmma.mma_async")]
    return {name for instruction in products for name in _names(instruction.operands[0])}


def watch(kernel: Kernel, instruction: Instruction, step: Step, watched: set[str]) -> Step:
    """Add to the step of an instruction a check that its registers are of no product in flight."""
    if instruction.opcode == "wgmma":
        return step
    names = {name for operand in instruction.operands for name in _names(operand)}
    used = [kernel.numbers[name] for name in sorted(names & watched)]
    if not used:
        return step

    def run(lanes: Lanes) -> None:
        products, groups = products_of(lanes), lanes.threads // GROUP
        early = np.logical_or.reduce(products.pending[used])[groups]
        if early.any():
            kind = "access to a register of wgmma before wgmma.wait_group"
            lanes.batch.report(kind, instruction, lanes.threads[early])
        step(lanes)

    return run


def _names(operand: str) -> set[str]:
    return set(re.findall(r"%[\w$]+", operand))


@form(r"wgmma\.fence\.sync\.aligned")
def _fence(operands: Operands) -> Step:
    # It orders accesses to registers, which the compilers that follow move across it: nothing to check.
    return lambda lanes: None


@form(r"fence\.proxy\.async(?:\.shared::cta)?")
def _proxy_fence(operands: Operands) -> Step:
    def step(lanes: Lanes) -> None:
        lanes.batch.shared.fence(lanes)

    return step


@form(r"wgmma\.commit_group\.sync\.aligned")
def _commit(operands: Operands) -> Step:
    def step(lanes: Lanes) -> None:
        if whole(lanes, operands.instruction, GROUP):
            products_of(lanes).commits[np.unique(lanes.threads // GROUP)] += 1

    return step


@form(r"wgmma\.wait_group\.sync\.aligned")
def _wait(operands: Operands) -> Step:
    left = operands.integer(operands.instruction.operands[0])
    return lambda lanes: products_of(lanes).wait(lanes, left)


@form(
    r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<columns>\d+)k(?P<depth>8|16)"
    r"\.f32\.(?P<kind>f16|bf16|tf32)\.(?P=kind)"
)
def _multiply(operands: Operands, columns: str, depth: str, kind: str) -> Step:
    instruction, n = operands.instruction, int(columns)
    from_registers = instruction.operands[1].startswith("{")
    scale_d, scale_a, scale_b, *transposes = range(3, len(operands))
    if (
        len(operands.list(0)) != n // 2
        or (depth == "8") != (kind == "tf32")
        or len(transposes) != (0 if kind == "tf32" else 1 if from_registers else 2)
    ):
        raise operands.unknown()
    integer = [operands.integer(instruction.operands[i]) for i in (scale_a, scale_b, *transposes)]
    transposed = [bool(flag) for flag in integer[2:]] or [False, False]
    d = [operands.source(source, "f32") for source in operands.list(0)]
    writes = [operands.target(target, 32) for target in operands.list(0)]
    a = [operands.source(source, "b32") for source in operands.list(1)] if from_registers else []
    descriptors = [(operands.source(i, "b64"), 64 if i == 1 else n) for i in ((2,) if from_registers else (1, 2))]
    accumulate = operands.source(scale_d, "pred")
    numbers = np.array([operands.numbers[name] for name in operands.list(0)])

    def operand(lanes: Lanes, read: Reader, rows: int, transpose: bool) -> tuple[np.ndarray, np.ndarray]:
        """A or B of every group, and the granules that hold it."""
        batch = lanes.batch
        values = lanes.flat(read(lanes)).reshape(-1, GROUP)
        if (values != values[:, :1]).any():
            batch.report("matrix descriptor that differs within a group of warps", instruction, lanes.threads)
        addresses = matrix.operand_addresses(values[:, 0], rows, transpose)  # [G, chunks]
        leaders = lanes.threads[::GROUP]
        readers = Lanes(batch, np.repeat(leaders, addresses.shape[1]))
        chunks = read_chunks(readers, instruction, addresses.reshape(-1), PROGRAM)
        granules = np.zeros((len(leaders), 0), np.int64)
        if batch.shared.shadow is not None:
            inside = np.clip(addresses.reshape(-1), 0, max(0, batch.shared.size - matrix.CHUNK))
            granules, _ = batch.shared.granules(readers, inside + readers.take(batch.shared.base), matrix.CHUNK)
            late = batch.shared.shadow.unfenced[granules]
            if late.any():
                title = "wgmma reads shared memory that was written without a fence.proxy.async since"
                batch.report(title, instruction, readers.threads[late.any(1)])
            granules = granules.reshape(len(leaders), -1)
        return matrix.operand(chunks.reshape(*addresses.shape, 4), kind, transpose), granules

    def step(lanes: Lanes) -> None:
        if not whole(lanes, instruction, GROUP):
            return
        products = products_of(lanes)
        groups = lanes.threads[::GROUP] // GROUP
        loaded = [operand(lanes, *where, flag) for where, flag in zip(descriptors, transposed, strict=False)]
        left = matrix.a_operand(fragments(lanes, a), kind) if from_registers else loaded[0][0]
        right = loaded[-1][0]
        results = matrix.wgmma(
            left * integer[0], right * integer[1], fragments(lanes, d), lanes.flat(accumulate(lanes))[::GROUP]
        )
        for write, values in zip(writes, results, strict=True):
            write(lanes, lanes.shaped(values.reshape(-1)))
        granules = np.concatenate([granules for _, granules in loaded], 1)
        products.add(Product(instruction, groups, products.commits[groups], granules, numbers))

    return step
