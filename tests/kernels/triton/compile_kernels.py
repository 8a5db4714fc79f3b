"""Compiles a rule's kernels for three GPUs and prints what the compiler used, as JSON.

``compile_kernels.py FOLDER RULE CASES NAMES``: the named cases, or ``all``, are compiled for sm_90,
and the first ``CASES`` of all for the others too.
"""

import json
import pathlib
import re
import subprocess
import sys
from dataclasses import replace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from luma_core.codecs import (
    BF16,
    FP8E4M3,
    FP32,
    LogV,
    Luma16M,
    Luma16V,
    Partition,
    RootV,
    SegmentMean,
    TableM,
)
from luma_core.sharding import Part
from luma_kernels.triton.fused import clip, norms
from luma_kernels.triton.rules import elementwise, lion
from luma_kernels.triton.runtime import plan
from luma_kernels.triton.schedules import adam_mini_launch as adam_mini
from luma_kernels.triton.schedules import (
    columns,
    columns_launch,
    one_pass,
    one_pass_launch,
    positions,
    reduce_apply,
    reduce_apply_launch,
    rows,
    rows_launch,
    segments,
    segments_launch,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TABLES = {"table": "*i64", "rows": "*i32", "owner": "*i32", "maxima": "*i32"}
COUNTS = {"tensors": "i32", "first_tensor": "i32"}
SCRATCH = {"sums": "*i64", "skipped": "*u8", "first_tensor": "i32"}
RUNS = {"runs": "*i64", "first_tensor": "i32"}
CUTS = {"cuts": "*i64", "partials": "*fp64", "sums": "*fp64", "rates": "*fp32"}


def bucket(dtype, block=128, ragged=False, plain=False):
    codecs = (FP32(block_size=block),) * 2
    if not plain:
        codecs = Luma16M(block_size=block), Luma16V(block_size=block)
    return plan.Bucket(dtype, dtype, *codecs, ragged, not ragged, True, True, False)


def lamb_bucket_like(case, flat=False):
    return reduce_apply_launch.LambBucket(**{**vars(case), "flat": flat})


def segment_bucket(dtype, first, partition, cut=False):
    height = partition.outer * partition.reduce * partition.length
    shape = height, partition.inner
    if partition.inner == 1:
        shape = partition.outer * partition.reduce, partition.length
    param = torch.empty(shape, dtype=dtype, device="meta")
    codecs = {"exp_avg": first, "exp_avg_sq": SegmentMean(partition=partition)}
    options = {"nonfinite": "skip", "stochastic_rounding": True, "maximize": False}
    part = Part(shape, shape, (0, 0), None, ()) if cut else None
    return adam_mini.segment_bucket_of(param, param, codecs, options, part)


def packed(dtype, first, second, ragged=False):
    return plan.Bucket(dtype, dtype, first, second, ragged, not ragged, True, True, False)


def compiled(kernel, constants, signature, target, **options):
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    names = [name for name in kernel.arg_names if name in signature]
    signature = {name: signature[name] for name in names}
    attrs = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*") and name in names
    }
    source = ASTSource(kernel, {name: signature[name] for name in names}, constants, attrs)
    options = {"enable_fp_fusion": False, **options}
    return triton.compile(source, target=target, options=options)


def usage(kernel, folder):
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def adamw_kernels(case, fast):
    formula = {"MOMENTS": elementwise.adamw_moments, "UPDATE": elementwise.adamw_update}
    yield from elementwise_kernels(formula, case, fast)


def lion_kernels(case, fast):
    formula = {"MOMENTS": lion.lion_moments, "UPDATE": lion.lion_update}
    yield from elementwise_kernels(formula, case, fast)


def elementwise_kernels(formula, case, fast):
    constants = one_pass_launch.step_constants(case, scaler=case.skip, fast=fast)
    constants.update(formula)
    yield "", one_pass.step_kernel, constants, TABLES, case.tuning.registers
    if case.whole:
        finish = {
            "M": constants["M"],
            "V": constants["V"],
            "SKIP": case.skip,
            "LANES": plan.TENSORS_PER_PROGRAM,
        }
        yield "/finish", one_pass.finish_kernel, finish, {**TABLES, **COUNTS}, case.tuning.registers


def lamb_kernels(case, fast):
    for last in (False, True):
        constants = reduce_apply_launch.lamb_constants(case, last=last, scaler=True, fast=fast)
        registers = reduce_apply_launch.lamb_registers(case, last=last)
        name = "/last" if last else "/first"
        yield name, reduce_apply.lamb_kernel, constants, {**TABLES, **SCRATCH}, registers
    if case.flat:
        yield "/ratio", reduce_apply.ratio_kernel, {}, {"rows": "*i32", **SCRATCH}, registers
    if case.scaled and case.aligned and case.param_dtype == torch.float32:
        signature = {**TABLES, "digits": "*i64"}
        yield "/norm", norms.gradient_kernel, clip.gradient_constants(case), signature, registers


def adam_mini_kernels(case, fast):
    if not isinstance(case, positions.PositionBucket):
        constants = segments_launch.mini_constants(case, scaler=True, fast=fast)
        yield "", segments.mini_kernel, constants, {**TABLES, **RUNS}, case.tuning.registers
        return
    means = positions.means_constants(case, scaler=True, fast=fast)
    parts = {"means": (columns.column_means_kernel, means)}
    if isinstance(case, columns_launch.ColumnBucket):
        constants = columns_launch.column_constants(case, scaler=True, fast=fast)
        names = ("sums", "parts", "update") if case.cut else ("sums", "update")
        for part in names:
            parts[part] = getattr(columns, f"column_{part}_kernel"), constants
    else:
        constants = rows_launch.row_constants(case, scaler=True)
        parts["sums"] = rows.row_sums_kernel, constants
        parts["update"] = rows.row_update_kernel, constants
    for part, (function, known) in parts.items():
        signature = {**TABLES, **CUTS, "first_tensor": "i32"}
        signature = {key: kind for key, kind in signature.items() if key in function.arg_names}
        yield f"/{part}", function, positions.of_kernel(function, known), signature, 128


folder = pathlib.Path(sys.argv[1])
kernels = {
    "adamw": adamw_kernels,
    "turbo": adamw_kernels,
    "lion": lion_kernels,
    "lamb": lamb_kernels,
    "adam_mini": adam_mini_kernels,
}[sys.argv[2]]
cases = {
    "float32": bucket(torch.float32),
    "bfloat16": bucket(torch.bfloat16),
    "float16": bucket(torch.float16),
    "ragged": bucket(torch.float32, ragged=True),
    "whole": bucket(torch.bfloat16, block=None),
    "plain": bucket(torch.float32, plain=True),
    "plain whole": bucket(torch.float32, block=None, plain=True),
}
cases["propagate"] = replace(cases["float32"], skip=False)
if sys.argv[2] == "lamb":
    cases = {name: lamb_bucket_like(case) for name, case in cases.items()}
    cases["flat"] = lamb_bucket_like(cases["float32"], flat=True)
if sys.argv[2] == "turbo":
    five, eight = (TableM(bits=3), RootV(bits=2)), (TableM(bits=3), LogV(bits=5))
    cases = {
        "float32": packed(torch.float32, *five),
        "bfloat16": packed(torch.bfloat16, *five),
        "8 bits": packed(torch.float32, *eight),
        "8 bits of bfloat16": packed(torch.bfloat16, *eight),
        "4 and 4 bits": packed(torch.bfloat16, TableM(bits=4), RootV(bits=4)),
        "second moment": packed(torch.float32, FP32(), RootV(bits=2)),
        "ragged": packed(torch.float32, *five, ragged=True),
    }
if sys.argv[2] == "lion":
    cases = {name: replace(case, second=None) for name, case in cases.items()}
    cases["few bits"] = packed(torch.bfloat16, TableM(bits=3), None)
if sys.argv[2] == "adam_mini":
    by_row = Partition.rows((64, 2048))
    fused = Partition(1, 1, 2304, 768, ((12, 64), (12, 64), (768, 1)))
    cases = {
        "float32": segment_bucket(torch.float32, BF16(), by_row),
        "bfloat16": segment_bucket(torch.bfloat16, BF16(), by_row),
        "long": segment_bucket(torch.float32, BF16(), Partition.rows((64, 8192))),
        "fused": segment_bucket(torch.float32, BF16(), fused),
        "fp8": segment_bucket(torch.float32, FP8E4M3(), by_row),
        "ragged": segment_bucket(torch.float32, FP32(), Partition.rows((64, 300))),
        "ragged columns": segment_bucket(torch.float32, BF16(), Partition.columns((768, 3072))),
        "cut": segment_bucket(torch.float32, BF16(), by_row, cut=True),
        "cut fp8": segment_bucket(torch.bfloat16, FP8E4M3(), by_row, cut=True),
        "cut ragged": segment_bucket(
            torch.float32, BF16(), Partition.columns((768, 3072)), cut=True
        ),
    }
few = list(cases)[: int(sys.argv[3])]
most = list(cases) if sys.argv[4] == "all" else sys.argv[4].split(",")
report = {}
for target_name, target in TARGETS.items():
    nvidia = target.backend == "cuda"
    names = most if target_name == "sm_90" else few
    jobs = [(name, cases[name], job) for name in names for job in kernels(cases[name], nvidia)]
    for name, case, (part, function, constants, signature, registers) in jobs:
        limits = {"maxnreg": registers} if nvidia and not case.ragged else {}
        kernel = compiled(
            function, constants, signature, target, num_warps=case.tuning.warps, **limits
        )
        name += part
        if not nvidia:
            report[f"{target_name}/{name}"] = {"size": len(kernel.asm["hsaco"])}
            continue
        ptx = kernel.asm["ptx"]
        wide = {
            "loads": len(re.findall(r"ld\.global(?:\.cg)?\.v4\.b32", ptx)),
            "stores": len(re.findall(r"st\.global\.v4\.b32", ptx)),
            "fusible": len(re.findall(r"\b(?:mul|add|sub)\.f(?:32|64)", ptx)),
        }
        report[f"{target_name}/{name}"] = {**usage(kernel, folder), **wide}
print("REPORT " + json.dumps(report))
