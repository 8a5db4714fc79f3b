"""Compiles every kernel for three GPUs and prints what the compiler used, as JSON."""

import json
import pathlib
import re
import subprocess
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from luma_core.codecs import FP32, Luma16M, Luma16V
from luma_kernels.triton import adamw, launcher, plan

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TABLES = {"table": "*i64", "rows": "*i32", "owner": "*i32", "maxima": "*i32"}


def bucket(dtype, block=128, ragged=False, plain=False):
    codecs = (FP32(block_size=block),) * 2
    if not plain:
        codecs = Luma16M(block_size=block), Luma16V(block_size=block)
    return plan.Bucket(dtype, dtype, *codecs, ragged, not ragged, True, True, False)


def compiled(kernel, constants, signature, target, **options):
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    names = list(signature)
    names.sort(key=kernel.arg_names.index)
    attrs = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*")
    }
    source = ASTSource(kernel, {name: signature[name] for name in names}, constants, attrs)
    return triton.compile(source, target=target, options=options)


def usage(kernel, folder):
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


folder = pathlib.Path(sys.argv[1])
cases = {
    "float32": bucket(torch.float32),
    "bfloat16": bucket(torch.bfloat16),
    "float16": bucket(torch.float16),
    "ragged": bucket(torch.float32, ragged=True),
    "whole": bucket(torch.bfloat16, block=None),
    "plain": bucket(torch.float32, plain=True),
}
report = {}
for target_name, target in TARGETS.items():
    nvidia = target.backend == "cuda"
    for name, case in cases.items():
        constants = launcher.step_constants(case, scaler=True, fast=nvidia)
        limits = {"maxnreg": case.tuning.registers} if nvidia and not case.ragged else {}
        kernel = compiled(adamw.step_kernel, constants, TABLES, target, num_warps=1, **limits)
        if not nvidia:
            report[f"{target_name}/{name}"] = {"size": len(kernel.asm["hsaco"])}
            continue
        ptx = kernel.asm["ptx"]
        wide = {
            "loads": len(re.findall(r"ld\.global\.v4\.b32", ptx)),
            "stores": len(re.findall(r"st\.global\.v4\.b32", ptx)),
        }
        report[f"{target_name}/{name}"] = {**usage(kernel, folder), **wide}
print("REPORT " + json.dumps(report))
