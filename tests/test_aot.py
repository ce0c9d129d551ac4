"""Every kernel compiles for real GPUs, with no GPU at hand, and spills no register.

The interpreter accepts more than the compiler does. Block sizes and warps are those of the launchers' own source; the
flags that launchers compute are listed here, and a kernel that is not listed fails.
"""

import ast
import inspect
import re
import subprocess
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.aot

triton = pytest.importorskip("triton", reason="kernels need Triton")
compiler = pytest.importorskip("triton.backends.compiler", reason="kernels need Triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)

from sparsevox.kernels._launch import POINTEES, SCALARS  # noqa: E402  (only where kernels are compiled)

KERNELS = Path(__file__).parents[1] / "sparsevox" / "kernels"
TARGETS = {
    "sm_80": compiler.GPUTarget("cuda", 80, 32),
    "sm_90": compiler.GPUTarget("cuda", 90, 32),
    "sm_100": compiler.GPUTarget("cuda", 100, 32),
    "gfx942": compiler.GPUTarget("hip", "gfx942", 64),
}
FLAGS: dict[str, list[dict[str, Any]]] = {
    "coarsen_kernel": [{"HALF": half} for half in (False, True)],
    "children_kernel": [{"KEEP": flags} for flags in (1, 8)],
    "blocks_kernel": [{"KEEP": keep} for keep in (False, True)],
    "combine_kernel": [
        *({"OP": op, "PART": "first"} for op in ("or", "and", "sub", "xor")),
        *({"OP": op, "PART": "second"} for op in ("or", "xor")),
    ],
    "scatter_kernel": [{"MERGE": merge} for merge in (False, True)],
    "dilate_kernel": [{"AXIS": axis} for axis in range(3)],
    "erode_kernel": [{"AXIS": axis} for axis in range(3)],
}
OTHER_POINTEES = {"coords_ptr": ("*i64", "*i32")}  # arguments that come in several dtypes
WIDTHS = ("i32", "i64")  # of sizes: Triton passes what fits as i32


class Launch(NamedTuple):
    """How a launcher runs a kernel."""

    module: str
    kernel: str
    block: int
    num_warps: int
    flags: tuple[tuple[str, Any], ...]  # those that stand in the call itself


def launches() -> list[Launch]:
    """Every call of `launch`, read off the source."""
    found = []
    for path in sorted(KERNELS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "launch":
                constants: dict[str | None, Any] = {
                    k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)
                }
                kernel = node.args[0]
                assert isinstance(kernel, ast.Name), ast.unparse(node)
                flags = tuple((str(k), v) for k, v in constants.items() if str(k).isupper())
                found.append(Launch(path.stem, kernel.id, constants["block"], constants.get("num_warps", 4), flags))
    return sorted(set(found))


def kernels() -> list[str]:
    """Every kernel that is defined."""
    return sorted(
        name for path in KERNELS.glob("*.py") for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M)
    )


def flags_of(launch: Launch) -> list[dict[str, Any]]:
    """The flags of a call: those that stand in it, with the computed ones that do not contradict them."""
    fixed = dict(launch.flags)
    computed = FLAGS.get(launch.kernel, [])
    fitting = [flags | fixed for flags in computed if all(flags.get(k, v) == v for k, v in fixed.items())]
    return fitting or [fixed]


def variants() -> list[Any]:
    return [
        pytest.param(launch, flags, id=" ".join([launch.kernel, *map(str, flags.values())]))
        for launch in launches()
        for flags in flags_of(launch)
    ]


def test_every_kernel_is_launched() -> None:
    assert {launch.kernel for launch in launches()} == set(kernels())
    assert set(FLAGS) <= set(kernels())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("launch", "flags"), variants())
def test_kernel_compiles_without_spills(launch: Launch, flags: dict[str, Any], target: str, tmp_path: Path) -> None:
    kernel = getattr(import_module(f"sparsevox.kernels.{launch.module}"), launch.kernel)
    names = list(inspect.signature(kernel.fn).parameters)
    constants = {"BLOCK": launch.block, **flags}
    several = [name for name in OTHER_POINTEES if name in names]
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)  # a cached binary would hide a change
        for width, *choice in product(WIDTHS, *(OTHER_POINTEES[name] for name in several)):
            sizes = {name: width if kind == "i64" else kind for name, kind in SCALARS.items()}
            types = POINTEES | sizes | dict(zip(several, choice, strict=True))
            signature = {name: "constexpr" if name in constants else types[name] for name in names}
            # What the launchers see: PyTorch aligns its tensors, and without this loads would be scalar.
            aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t[0] == "*"}
            source = triton.compiler.ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
            compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": launch.num_warps})
            assert spills(compiled, tmp_path) == 0


def spills(compiled: Any, folder: Path) -> int:
    """Bytes of stack a thread (NVIDIA), or spilled registers (AMD)."""
    if "amdgcn" in compiled.asm:
        counts = re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])
        assert len(counts) == 2, compiled.asm["amdgcn"]
        return sum(int(n) for n in counts)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    sizes = re.findall(r"(?:STACK|LOCAL):(\d+)", usage)
    assert sizes, usage
    return sum(int(size) for size in sizes)
