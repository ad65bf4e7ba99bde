"""Triton kernels compiled for an H100's kind of GPU, which needs none."""

import re
import subprocess
from pathlib import Path

import pytest


def compiled(kernel, pointers, constants, folder, num_warps=4):
    """(PTX, {"REG", "STACK", "LOCAL": number}) of a kernel, whose other arguments are 32-bit integers.

    Args:
        pointers: {argument: "*bf16"}. constants: {argument: value}. folder: for what the disassembler reads.
    """
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not disassembler.exists():
        pytest.skip("this Triton brings no cuobjdump")
    kinds = {name: "constexpr" for name in constants} | pointers
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    # As of every tensor torch allocates, and of the sizes of a network.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in constants}
    options = dict(num_warps=num_warps, enable_fp_fusion=True)
    source = ASTSource(kernel, signature, constants, aligned)
    built = triton.compile(source, GPUTarget("cuda", 90, 32), options)
    (folder / "kernel.cubin").write_bytes(built.asm["cubin"])
    usage = subprocess.run(
        [disassembler, "--dump-resource-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    return built.asm["ptx"], {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
