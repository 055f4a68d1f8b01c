"""Triton's kernels compiled ahead of time for sm_90: registers, spills, shared memory, instructions.

The sizes are those of a 7B model. ptxas and cuobjdump come with Triton; no GPU is needed.
"""

import importlib.util
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

SHARED = 64 << 10  # bytes: three programs fit a multiprocessor
REGISTERS = 128  # a thread: four programs of four warps fit a multiprocessor
PACKED = {"levels": "*fp32", "levels8": "*fp32", "absmax8": "*fp32", "offset": "*fp32"}
SIZES = {"rows": "i32", "columns": "i32", "width": "i32", "blocks": "i32"}
KINDS = {  # of `triton_packed`: number, bits, first and second constants
    "levels": (0, 4, "*fp32", "*u8"),
    "nested": (1, 4, "*u8", "*u8"),
    "int8": (2, 8, "*fp32", "*u8"),
    "int4": (3, 4, "*fp16", "*fp16"),
}


def compiled(kernel, types, constants, warps=4, fusion=False):
    """Return PTX, and registers and bytes of stack, shared and local memory, of a kernel on sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    assert set(names) == set(types) | set(constants)
    source = ASTSource(
        kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={
            (names.index(n),): [["tt.divisibility", 16]] for n in types if n != "m" and types[n] != "fp32"
        },
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "enable_fp_fusion": fusion},
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return made.asm["ptx"], usage(tool, made.asm["cubin"]), made.metadata.shared


def usage(tool, cubin):
    """Return what a kernel uses: {"REG": registers, "STACK": bytes, "LOCAL": bytes}."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        shown = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", shown)}


def fits(used, shared, registers=REGISTERS):
    assert used["STACK"] == 0 and used["LOCAL"] == 0  # nothing is spilled
    assert used["REG"] <= registers and shared <= SHARED, (used, shared)


def of_kind(kind):
    number, bits, first, second = KINDS[kind]
    types = {"codes": "*u8", "first": first, "second": second, **PACKED}
    return types, {"KIND": number, "BITS": bits, "BLOCK": 64, "GROUP": 256}


@pytest.mark.parametrize("kind", KINDS)
def test_decoding(kind):
    from graft.kernels import triton_packed

    types, constants = of_kind(kind)
    ptx, used, shared = compiled(
        triton_packed._dequantise,
        types | {"out": "*bf16", "chunks": "i32"} | SIZES,
        constants | {"G": triton_packed.TILE // 64},
    )
    fits(used, shared)
    assert "fma" not in ptx  # which would change the last bit
    assert "cvt.rn.bf16" in ptx  # to the nearest
    assert "st.global.v4" in ptx and "ld.global.v4" in ptx  # 16 bytes a thread


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 16])
def test_products(kind, m):
    import triton.language as tl

    from graft.kernels import triton_packed as t

    types, constants = of_kind(kind)
    ptx, used, shared = compiled(
        t._product,
        types | {"x": "*bf16", "bias": "*bf16", "out": "*fp32", "m": "i32"} | SIZES,
        constants
        | {"G": t.INNER // 64, "R": t.OUTPUTS, "M": m, "PARTS": 2, "BIASED": False, "DOT": tl.bfloat16},
        fusion=True,
    )
    fits(used, shared)
    assert ("mma.sync" in ptx) == (m > 1)


@pytest.mark.parametrize("width", [4096, 8192])
def test_norms(width):
    from graft.kernels import triton_blocks as t

    shared = {"x": "*bf16", "weight": "*bf16", "mean": "*fp32", "rate": "*fp32", "width": "i32"}
    forward = shared | {"bias": "*bf16", "y": "*bf16", "eps": "fp32", "plus": "fp32"}
    statics = {"SIZE": width, "CENTRED": False, "BIASED": False}
    warps = t._warps(width)
    fits(*compiled(t._norm, forward, statics, warps, fusion=True)[1:])
    backward = shared | {"dy": "*bf16", "dx": "*bf16", "dweight": "*fp32", "dbias": "*fp32", "rows": "i32"}
    types = backward | {"plus": "fp32"}
    for whole in (False, True):  # RMSNorm with a frozen weight; LayerNorm with all gradients
        statics = {"SIZE": width, "CENTRED": whole, "BIASED": whole, "WEIGHTED": whole}
        fits(*compiled(t._norm_backward, types, statics, warps, fusion=True)[1:])


@pytest.mark.parametrize("kind", range(4))
def test_gated_activations(kind):
    from graft.kernels import triton_blocks as t

    statics = {"KIND": kind, "SIZE": t.ELEMENTS}
    types = {"gate": "*bf16", "up": "*bf16", "count": "i32"}
    fits(*compiled(t._gate, types | {"y": "*bf16"}, statics, fusion=True)[1:])
    types |= {"dy": "*bf16", "dgate": "*bf16", "dup": "*bf16"}
    fits(*compiled(t._gate_backward, types, statics, fusion=True)[1:])


def test_rotary_positions():
    from graft.kernels import triton_blocks as t

    types = {"x": "*bf16", "cos": "*bf16", "sin": "*bf16", "y": "*bf16"}
    types |= dict.fromkeys(("of_batch", "of_head", "of_row", "heads", "length", "half", "tables"), "i32")
    for back in (False, True):
        statics = {"HEADS": 32, "HALF": 64, "BACK": back}
        fits(*compiled(t._rotary, types, statics, t._warps(2048), fusion=True)[1:])


def test_the_loss():
    from graft.kernels import triton_loss as t

    types = {"logits": "*bf16", "labels": "*i64", "logprobs": "*fp32", "hits": "*i1", "vocabulary": "i32"}
    types |= {"scale": "fp32", "cap": "fp32"}
    statics = {"CAPPED": True, "WANTED": True, "SIZE": t.SIZE}
    fits(*compiled(t._token_logprobs, types, statics, 8, fusion=True)[1:])


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("kind", range(3))
def test_the_optimizer(eight, kind):
    from graft.kernels import triton_optimizer as t

    parameter, other = [("*fp32", "*fp32"), ("*i16", "*i16"), ("*fp16", "*fp32")][kind]
    gradient = ["*fp32", "*bf16", "*fp16"][kind]
    types = {"parameter": parameter, "other": other, "gradient": gradient, "count": "i32"}
    types |= {name: "*u8" if eight else "*fp32" for name in ("m", "v")}
    types |= {
        f"{name}_{table}": "*u8" if table == "start" else "*fp32"
        for name in ("m", "v")
        for table in ("absmax", "levels", "start", "midpoints")
    }
    numbers = ("mix1", "keep2", "mix2", "keep_weight", "rate", "root", "eps", "clip")
    statics = {"KIND": kind, "BITS8": eight, "CLIPPED": True, "BLOCKS": t.BLOCKS, "BLOCK": t.BLOCK}
    _, used, shared = compiled(t._adamw, types | dict.fromkeys(numbers, "fp32"), statics)
    fits(used, shared)
