"""Global and shared memory: bounds, alignment, and the arrays that hold the bytes.

Kernels get the real addresses of tensors and work on them in place. Every access is checked first: it must lie within
the arguments that its address can be derived from.
"""

import mmap
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch

from sparsevox.ptx.findings import Findings
from sparsevox.ptx.parse import Instruction
from sparsevox.ptx.races import LOW, WARP, Shadow
from sparsevox.ptx.registers import DTYPES, Lanes, Value

MAP_NORESERVE = 0x4000  # of Linux; Python's mmap has no name for it


class _AddressSpace:
    """The memory of the process as a buffer. Its first page is never mapped, and NumPy refuses an address of 0."""

    origin = 4096
    __array_interface__: ClassVar[dict[str, Any]] = {
        "shape": ((1 << 48) - origin,),
        "typestr": "|u1",
        "data": (origin, False),
        "version": 3,
    }


class Bytes:
    """An array of bytes that is seen as vectors of integers of each size."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.views: dict[tuple[int, int], np.ndarray] = {}

    def vectors(self, width: int, count: int) -> np.ndarray:
        """Unsigned integers of `width` bytes, [n] or, `count` in a vector, [n, count]."""
        if (width, count) not in self.views:
            flat = self.array[: len(self.array) // 16 * 16].view(DTYPES[f"u{8 * width}"])
            self.views[width, count] = flat if count == 1 else flat.reshape(-1, count)
        return self.views[width, count]


class GlobalMemory(Bytes):
    """The tensors of a launch.

    Args:
        tensors: The argument of each parameter, None where it is no tensor.
        reach: For each instruction that accesses global memory, the parameters that its address derives from.
        written: The parameters that the kernel may write.
        granule: Bytes of a granule of the shadow.
        checked: False: no shadow.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor | None],
        reach: Mapping[int, Sequence[int]],
        written: set[int],
        granule: int,
        checked: bool,
        findings: Findings,
        instructions: list[Instruction],
    ) -> None:
        super().__init__(np.asarray(_AddressSpace()))
        self.granule = granule
        spans = {number: span(tensor) for number, tensor in enumerate(tensors) if tensor is not None}
        self.spans = dict.fromkeys(reach, spans)
        for instruction, parameters in reach.items():
            self.spans[instruction] = {number: spans[number] for number in parameters if number in spans}
        # Bytes that are written, as regions that do not overlap, one after the other in the shadow.
        self.starts, self.ends, self.shifts = [], [], []
        n = 0
        if checked:
            for low, high in merged([spans[number] for number in written if number in spans]):
                low = low // 16 * 16
                self.starts.append(low)
                self.ends.append(high)
                self.shifts.append(n * granule - low)
                n += -(-(high - low) // granule)
        self.shadow = Shadow(n, "global", findings, instructions) if n else None

    def resolve(
        self, lanes: Lanes, address: Value, size: int, instruction: Instruction, alignment: int = 0
    ) -> tuple[Value, Value | None]:
        """Offsets into the array of accesses to `size` bytes, and None or which of them are legal."""
        spans = self.spans[instruction.number]
        good = np.False_
        for low, high in spans.values():
            if high - low >= size:
                good = good | ((address - np.int64(low)).view(np.uint64) <= np.uint64(high - low - size))
        return check(lanes, address, alignment or size, good, instruction, address - np.int64(_AddressSpace.origin))

    def granules(self, lanes: Lanes, offset: Value, size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Granules [N, k] of accesses at offsets, and None or which of the N are in written memory at all."""
        address = lanes.flat(offset) + np.int64(_AddressSpace.origin)
        region = np.searchsorted(self.starts, address, "right") - 1
        inside = (region >= 0) & (address < np.array(self.ends)[region])
        if not inside.all():
            address, region = address[inside], region[inside]
        first = (address + np.array(self.shifts)[region]) // self.granule
        granules = first[:, None] + np.arange(max(1, size // self.granule))
        return granules, None if inside.all() else inside


class SharedMemory(Bytes):
    """Shared memory of the programs of a batch, [P * bytes]. What was not written is full of 0xFF."""

    def __init__(
        self,
        programs: int,
        size: int,
        granule: int,
        checked: bool,
        findings: Findings,
        instructions: list[Instruction],
    ) -> None:
        self.size, self.granule, self.stride = size, granule, -(-max(size, 1) // 1024) * 1024
        super().__init__(np.full(programs * self.stride, 0xFF, np.uint8))
        self.base = np.arange(programs, dtype=np.int64)[:, None] * self.stride
        self.shadow = (
            Shadow(programs * self.stride // granule, "shared", findings, instructions) if checked and size else None
        )

    def resolve(
        self, lanes: Lanes, address: Value, size: int, instruction: Instruction, alignment: int = 0
    ) -> tuple[Value, Value | None]:
        """Offsets into the array of accesses to `size` bytes, and None or which of them are legal."""
        good = address.view(np.uint64) <= np.uint64(self.size - size) if size <= self.size else np.False_
        return check(lanes, address, alignment or size, good, instruction, address + lanes.take(self.base))

    def granules(self, lanes: Lanes, offset: Value, size: int) -> tuple[np.ndarray, None]:
        """Granules [N, k] of accesses at offsets."""
        first = lanes.flat(offset) // self.granule
        return first[:, None] + np.arange(max(1, size // self.granule)), None

    def fence(self, lanes: Lanes) -> None:
        """A proxy fence: the asynchronous proxy sees the writes that come before it for any of these threads."""
        if self.shadow is None:
            return
        batch, (programs, threads) = lanes.batch, lanes.shape
        granules = np.flatnonzero(self.shadow.unfenced & (self.shadow.in_flight == 0))
        writes, program = self.shadow.writes[granules], granules * self.granule // self.stride
        fences = np.zeros(programs * threads, bool)
        fences[lanes.threads] = True
        epoch = np.where(fences, batch.when >> 32, 0).reshape(programs, threads).max(1)[program]
        own = (writes.scope <= WARP) & fences[program * threads + (writes.owner & LOW)]
        self.shadow.unfenced[granules[own | (writes.when >> 32 < epoch)]] = False


def check(
    lanes: Lanes, address: Value, alignment: int, good: Value, instruction: Instruction, offset: Value
) -> tuple[Value, Value | None]:
    """Report accesses that are not `good` or misaligned. Returns offsets, and None or which accesses are legal."""
    if np.count_nonzero(good) != good.size:
        lanes.batch.report("address out of bounds", instruction, lanes.threads[~lanes.flat(good)])
    elif not np.bitwise_or.reduce(address, axis=None) & (alignment - 1):
        return offset, None
    aligned = address & np.int64(alignment - 1) == 0
    if not np.all(aligned):
        lanes.batch.report("misaligned address", instruction, lanes.threads[~lanes.flat(aligned)])
    return offset, good & aligned


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """First address of a tensor, and the one after its last byte."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of spans as spans that do not overlap, in order."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if result and low <= result[-1][1] + 16:
            result[-1] = result[-1][0], max(high, result[-1][1])
        elif high > low:
            result.append((low, high))
    return result


class SparseMemory:
    """Tensors that may be larger than the memory of this computer: pages count once they are written.

    Args:
        size: Bytes of all tensors together, e.g. `400 << 30`.
    """

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._used = 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of zeros that touches no memory."""
        size = prod(shape) * dtype.itemsize
        start = -(-self._used // 512) * 512
        if start + size > len(self._bytes):
            raise ValueError(f"{size} bytes do not fit: {start} of {len(self._bytes)} are in use")
        self._used = start + size
        return self._bytes[start : start + size].view(dtype).view(*shape)


def sparse_memory(size: int) -> SparseMemory:
    """Address space of `size` bytes whose pages count once they are written; its `zeros` makes tensors in it."""
    return SparseMemory(size)


def parameter_value(argument: Any, kind: str) -> Value:
    """An argument of a kernel (tensor, number, None) as the bits of a parameter."""
    bits = int(kind[1:])
    if isinstance(argument, torch.Tensor):
        return np.uint64(argument.data_ptr())
    if isinstance(argument, float):
        return np.array(argument, f"f{bits // 8}").view(f"u{bits // 8}")[()]
    return np.array(int(argument or 0) & ((1 << bits) - 1), f"u{bits // 8}")[()]
