"""Every kernel compiles ahead of time for real GPUs, without a GPU, and spills no register.

The interpreter accepts more than the compiler does. Block sizes and warps are those of the launchers' own source; the
flags that launchers compute are listed here, and a kernel that is not listed fails.
"""

import ast
import inspect
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytestmark = pytest.mark.aot

triton = pytest.importorskip("triton", reason="kernels need Triton")
compiler = pytest.importorskip("triton.backends.compiler", reason="kernels need Triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)

from sparsevox.kernels._conv_configs import AMD, conv_flags, weight_flags  # noqa: E402  (as above)
from sparsevox.kernels._launch import FP_FUSION, POINTEES, SCALARS  # noqa: E402  (only where kernels are compiled)
from sparsevox.plans import TILE_ROWS  # noqa: E402  (only where kernels are compiled)

KERNELS = Path(__file__).parents[1] / "sparsevox" / "kernels"
TARGETS = {
    "sm_80": compiler.GPUTarget("cuda", 80, 32),
    "sm_90": compiler.GPUTarget("cuda", 90, 32),
    "sm_100": compiler.GPUTarget("cuda", 100, 32),
    "sm_120": compiler.GPUTarget("cuda", 120, 32),
    "gfx942": compiler.GPUTarget("hip", "gfx942", 64),
    "gfx950": compiler.GPUTarget("hip", "gfx950", 64),
}
# Their code resembles that of sm_80 and gfx942: of all kernels but convolutions every second variant, in one width.
SAMPLED = ("sm_120", "gfx950")
FLOATS = (("*bf16", "*bf16"), ("*fp16", "*fp32"), ("*fp32", "*fp32"), ("*fp64", "*fp64"))  # features in, out
EXACT = (("*bf16", "*fp32"), ("*fp32", "*fp32"), ("*fp64", "*fp64"))  # features, and what sums of them are
REDUCTIONS = (  # SOURCE, REDUCE, DIVIDE, WINNERS, UNROLL
    ("rows", "sum", False, False, 4),
    ("rows", "max", False, True, 4),
    ("list", "sum", True, False, 4),
    ("list", "min", False, True, 4),
    ("table", "sum", True, False, 4),
    ("table", "sum", False, False, 1),
    ("table", "max", False, True, 4),
    ("table", "place", False, False, 1),
    ("table", "place", False, False, 4),
)
# What launchers compute: constants, and the dtypes of pointers that may point at several.
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
    "reduce_kernel": [
        dict(zip(("SOURCE", "REDUCE", "DIVIDE", "WINNERS", "UNROLL"), words, strict=True))
        | {"COLUMNS": 8 if i % 4 == 2 else 32, "feats_ptr": FLOATS[i % 4][0], "out_feats_ptr": FLOATS[i % 4][1]}
        for i, words in enumerate(REDUCTIONS * 2)
    ],
    **{name: [{"HALF": half} for half in (False, True)] for name in ("runs_kernel", "parents_kernel")},
    "tile_taps_kernel": [{"ROWS": TILE_ROWS}],
    "weighted_kernel": [
        {"SUM": total, "COLUMNS": 8 if exact == "*fp64" else 32}
        | {"feats_ptr": feats, "weights_ptr": exact, "out_feats_ptr": exact if total else feats}
        for total, (feats, exact) in product((False, True), EXACT)
    ],
    "dot_kernel": [
        {"COLUMNS": columns, "feats_ptr": feats, "values_ptr": feats, "weights_ptr": exact}
        for columns, (feats, exact) in zip((8, 32, 32), EXACT, strict=True)
    ],
    "moments_kernel": [
        {"GRADIENT": gradient, "COLUMNS": 32}
        | {"feats_ptr": feats, "grads_ptr": feats, "means_ptr": exact, "out_parts_ptr": exact if gradient else "*fp64"}
        for gradient, (feats, exact) in product((False, True), EXACT)
    ],
    "statistics_kernel": [
        {"EPS": 1e-5, "parts_ptr": "*fp64", "out_means_ptr": exact, "out_rstds_ptr": exact}
        for exact in ("*fp32", "*fp64")
    ],
    "coefficients_kernel": [
        {"WEIGHT": weight is not None, "weight_ptr": weight or exact, "parts_ptr": exact, "rstds_ptr": exact}
        | {f"out_{name}_ptr": exact for name in ("totals", "products", "slopes")}
        for weight, exact in ((None, "*fp32"), ("*fp32", "*fp32"), ("*bf16", "*fp32"), ("*fp64", "*fp64"))
    ],
    "affine_kernel": [
        {"GRADIENT": gradient, "WEIGHT": affine, "BIAS": affine and not gradient, "COLUMNS": 32}
        | {f"{name}_ptr": feats for name in ("feats", "grads", "out_feats")}
        | {f"{name}_ptr": exact for name in ("means", "rstds", "slopes", "weight", "bias")}
        for gradient, affine, (feats, exact) in product((False, True), (False, True), EXACT)
    ],
    "group_kernel": [
        {"WEIGHT": affine, "BIAS": affine, "EPS": 1e-5, "feats_ptr": feats, "out_feats_ptr": feats}
        | {f"{name}_ptr": exact for name in ("out_means", "out_rstds", "weight", "bias")}
        for affine, (feats, exact) in product((False, True), EXACT)
    ],
    "group_gradient_kernel": [
        {"WEIGHT": affine}
        | {f"{name}_ptr": feats for name in ("feats", "grads", "out_feats")}
        | {f"{name}_ptr": exact for name in ("means", "rstds", "weight", "out_totals", "out_products")}
        for affine, (feats, exact) in product((False, True), EXACT)
    ],
    "cells_kernel": [
        {"GATHER": gather, "COLUMNS": 16, "feats_ptr": feats, "out_feats_ptr": feats}
        for gather, feats in product((False, True), ("*bf16", "*fp32", "*fp64"))
    ],
}
OTHER_POINTEES = {"coords_ptr": ("*i64", "*i32")}  # arguments that come in several dtypes
WIDTHS = ("i32", "i64")  # of sizes: Triton passes what fits as i32
# Bytes of stack per thread that a function call needs: there, a division of float64 is one.
CALLS = {("sm_120", "reduce_kernel", "*fp64"): 8}


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
        pytest.param(launch, flags, target, id=" ".join([launch.kernel, *map(str, flags.values()), target]))
        for launch in launches()
        for number, flags in enumerate(reversed(flags_of(launch)))
        for target in TARGETS
        if number % 2 == 0 or target not in SAMPLED
    ]


class Conv(NamedTuple):
    """Input and output channels of a group, groups and dtype of a convolution."""

    c: int
    d: int
    groups: int
    dtype: torch.dtype
    tf32: bool = False


CONVS = [
    Conv(64, 64, 1, torch.float16),
    Conv(128, 128, 1, torch.bfloat16),
    Conv(3, 32, 1, torch.float16),
    Conv(33, 65, 1, torch.bfloat16),
    Conv(16, 16, 4, torch.float16),
    Conv(64, 64, 1, torch.float32, tf32=True),
    Conv(128, 128, 1, torch.float32),
    Conv(133, 133, 1, torch.float32),
    Conv(1, 1, 64, torch.float32),
    Conv(8, 24, 1, torch.float64),
]
CONV_KERNELS = {"conv_kernel", "conv_weight_kernel"}  # their tiles follow from channels and dtype
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}


def test_every_kernel_is_launched() -> None:
    assert {launch.kernel for launch in launches()} | CONV_KERNELS == set(kernels())
    assert set(FLAGS) <= set(kernels())


@pytest.mark.parametrize(("launch", "flags", "target"), variants())
def test_kernel_compiles_without_spills(launch: Launch, flags: dict[str, Any], target: str, tmp_path: Path) -> None:
    kernel = getattr(import_module(f"sparsevox.kernels.{launch.module}"), launch.kernel)
    constants = {"BLOCK": launch.block, **{name: flag for name, flag in flags.items() if name.isupper()}}
    pointees = {name: pointee for name, pointee in flags.items() if name.endswith("_ptr")}
    several = [name for name in OTHER_POINTEES if name in inspect.signature(kernel.fn).parameters]
    widths = WIDTHS[:1] if target in SAMPLED else WIDTHS
    for width, *choice in product(widths, *(OTHER_POINTEES[name] for name in several)):
        types = pointees | dict(zip(several, choice, strict=True))
        options = {"num_warps": launch.num_warps}
        found = build(kernel, width, types, constants, target, options, tmp_path)
        assert spills(found, tmp_path) <= CALLS.get((target, launch.kernel, types.get("feats_ptr", "")), 0)
        assert_precise(found)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("name", sorted(CONV_KERNELS))
def test_convolutions_compile_without_spills(name: str, case: Conv, target: str, tmp_path: Path, tf32: None) -> None:
    found = build_conv(name, case, target, tmp_path)
    assert spills(found, tmp_path) == 0
    assert_precise(found)


def test_convolutions_run_on_tensor_cores_in_a_pipeline(tmp_path: Path) -> None:
    ptx = {
        target: build_conv("conv_kernel", CONVS[0], target, tmp_path).asm["ptx"] for target in TARGETS if "sm" in target
    }
    units = {"sm_80": "mma.sync.aligned", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
    for target, unit in units.items():
        assert unit in ptx[target]
        assert re.search(r"cp\.async\.cg\.shared\.global \[.*\], \[.*\], 0x10", ptx[target])


@pytest.fixture
def tf32(case: Conv) -> Iterator[None]:
    """The precision of float32 products of a case."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if case.tf32 else "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def assert_precise(compiled: Any) -> None:
    """Check that the code has no approximate operation: the reference has none either."""
    assert not re.findall(r"^.*\.(?:approx|full)\..*$", compiled.asm.get("ptx", ""), re.M)


def build_conv(name: str, case: Conv, target: str, folder: Path) -> Any:
    """A kernel of `kernels/conv.py` in its default tile."""
    c, d, groups, dtype, _ = case
    architecture = AMD if target.startswith("gfx") else int(target.removeprefix("sm_"))
    if name == "conv_kernel":
        *_, flags = conv_flags(c, d, groups, dtype, bias=True, architecture=architecture)
    else:
        *_, flags = weight_flags(c, d, groups, dtype, architecture)
    flags = dict(flags)
    options = {option: flags.pop(option) for option in ("num_warps", "num_stages")}
    types = dict.fromkeys(("feats_ptr", "weight_ptr", "grads_ptr", "out_feats_ptr"), POINTERS[dtype])
    types |= {"bias_ptr": "*fp32", "partials_ptr": "*fp64" if dtype == torch.float64 else "*fp32"}
    kernel = getattr(import_module("sparsevox.kernels.conv"), name)
    return build(kernel, WIDTHS[0], types, flags, target, options, folder)


def build(
    kernel: Any,
    width: str,
    pointees: dict[str, str],
    constants: dict[str, Any],
    target: str,
    options: dict[str, int],
    folder: Path,
) -> Any:
    """Compile a kernel with sizes of a width, and with what launchers see of its pointers."""
    names = list(inspect.signature(kernel.fn).parameters)
    sizes = {name: width if kind == "i64" else kind for name, kind in SCALARS.items()}
    types = POINTEES | sizes | pointees
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    # PyTorch aligns its tensors, and without this loads would be scalar.
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t[0] == "*"}
    source = triton.compiler.ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder)  # a cached binary would hide a change
        return triton.compile(source, target=TARGETS[target], options={"enable_fp_fusion": FP_FUSION, **options})


def spills(compiled: Any, folder: Path) -> int:
    """Bytes of stack per thread (NVIDIA), or spilled registers (AMD)."""
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
