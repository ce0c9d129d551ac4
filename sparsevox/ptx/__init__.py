"""An interpreter of PTX: tests run the compiled code of Triton kernels on a machine without a GPU.

Kernels are compiled for a GPU as usual; their launches on CPU tensors execute the PTX, with its layouts, shared memory,
barriers, asynchronous copies and tensor-core instructions, and report what a result alone does not show: races within
and between programs, reads of uninitialized shared memory, addresses out of bounds or misaligned, missing waits and
divergent barriers.

```python
import torch, triton, triton.language as tl
from sparsevox import ptx

@triton.jit
def add_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(y_ptr + i, x + 1, mask=i < n)

x, y = torch.arange(1000.0), torch.empty(1000)
with ptx.emulate("sm_80", seed=0) as emulation:
    add_kernel[(8,)](x, y, 1000, BLOCK=128)
emulation.check()  # raises a KernelError that lists the findings
assert torch.equal(y, x + 1)
```

What is executed is PTX and not the machine code that ptxas makes of it: its errors, the timing and the weak memory
order of a GPU stay outside. Approximate instructions (`div.full`, `rcp.approx`, `ex2.approx`) are computed exactly and
rounded once. Atomics order nothing: what one program hands to another within a launch is reported as a race.
"""

from importlib.util import find_spec

from sparsevox.ptx.findings import Finding, KernelError
from sparsevox.ptx.machine import Machine, Program
from sparsevox.ptx.memory import SparseMemory, sparse_memory

if find_spec("triton"):  # the rest runs without it
    from sparsevox.ptx.emulate import Emulation, Launch, emulate

__all__ = [
    "Emulation",
    "Finding",
    "KernelError",
    "Launch",
    "Machine",
    "Program",
    "SparseMemory",
    "emulate",
    "sparse_memory",
]
