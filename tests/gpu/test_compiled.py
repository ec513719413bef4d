"""Element-wise kernels are compiled to a GPU's machine code, for which Triton needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Prints what each case became, compiled for compute capability 9.0.
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lakerank.model.engine.elementwise import kernels
from lakerank.model.engine.elementwise.fused import ACTIVATIONS

NORM = {"rows": "*bf16", "added": "*bf16", "weight": "*fp32", "out": "*bf16", "epsilon": "fp32"}
ROTATE = {"states": "*bf16", "cosines": "*fp32", "sines": "*fp32"}
ACTIVATE = {"rows": "*bf16", "out": "*bf16"}
CASES = [
    *((kernels.norm, NORM, {"SIZE": 1536, "BLOCK": 2048, "ADDS": adds}) for adds in (False, True)),
    (kernels.rotate, ROTATE, {"HEADS": 32, "HALF": 40, "HEADS_BLOCK": 16, "BLOCK": 64}),
    *(
        (kernels.activate, ACTIVATE, {"COLUMNS": 8960, "BLOCK": 1024, "KIND": kind, "GATED": gated})
        for kind in ACTIVATIONS for gated in (False, True)
    ),
]
for kernel, types, constants in CASES:
    names = kernel.arg_names
    signature = {name: types.get(name, "i32" if name.endswith("stride") else "constexpr") for name in names}
    fixed = {(names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 90, 32))
    print(len(compiled.asm["cubin"]) > 1000, "atom" in compiled.asm["ptx"])
"""


@pytest.mark.nightly
def test_every_kernel_compiles_and_adds_nothing_atomically(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True False"] * 11
