"""Launcher of the native step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from luma_core.codecs import Codec, SegmentMean
from luma_core.rules import (
    AdamMiniRule,
    AdamWHyper,
    AdamWRule,
    LAMBHyper,
    LAMBRule,
    ParameterStep,
    Rule,
)
from luma_core.rules.adamw import MOMENTS
from luma_kernels.cpu.coding import (
    DTYPES,
    describe_layout,
    describe_moment,
    is_plain,
    moment_kind,
    stored_as_specified,
    thread_count,
)
from luma_kernels.cpu.library import address, native_library
from luma_kernels.cpu.mini import first_layout, step_segments, unsupported_first
from luma_kernels.cpu.structs import (
    BFLOAT,
    FP8,
    LOG,
    LOG_ROOT,
    LOG_SIGNED,
    PLAIN,
    ROOT,
    TABLE,
    Moment,
    Step,
)

_WHOLE_KINDS = ((LOG_SIGNED, LOG_ROOT), (PLAIN, PLAIN))
"""Pairs that may have one scale for the whole tensor."""

_ADAMW_KINDS = (
    (LOG_SIGNED, LOG_ROOT),
    (BFLOAT, BFLOAT),
    *product((PLAIN, TABLE), (PLAIN, ROOT, LOG)),
    *product((LOG_SIGNED, BFLOAT, FP8), (PLAIN,)),
)
_KINDS: dict[type[Rule], tuple[tuple[int, int], ...]] = {
    AdamWRule: _ADAMW_KINDS,
    AdamMiniRule: _ADAMW_KINDS,
    LAMBRule: ((LOG_SIGNED, LOG_ROOT), (BFLOAT, BFLOAT), (PLAIN, PLAIN)),
}


def unsupported_codecs(rule: Rule, codecs: Mapping[str, Codec]) -> str:
    """Return why the library cannot step moments stored by ``codecs``; empty if it can."""
    if type(rule) not in _KINDS or tuple(codecs) != MOMENTS:
        return f"there is no native kernel of the rule {type(rule).__name__}"
    if type(rule) is AdamMiniRule and isinstance(codecs[MOMENTS[1]], SegmentMean):
        return unsupported_first(codecs[MOMENTS[0]])
    kinds = tuple(moment_kind(codec) for codec in codecs.values())
    sizes = {codec.block_size for codec in codecs.values()}
    if kinds not in _KINDS[type(rule)] or len(sizes) > 1:
        names = " and ".join(codec.name for codec in codecs.values())
        return f"there is no native kernel of the codecs {names} together"
    if None in sizes and (type(rule) is LAMBRule or kinds not in _WHOLE_KINDS):
        return f"there is no native kernel of {type(rule).__name__} and block_size=None"
    return ""


def unsupported_step(rule: Rule, item: ParameterStep) -> str:
    """Return why the library cannot take a step; empty if it can."""
    for name, tensor in (("parameter", item.param), ("gradient", item.grad)):
        if tensor.dtype not in DTYPES:
            return f"the {name} is {tensor.dtype}"
        if not is_plain(tensor):
            return f"the {name} is not a plain tensor on the CPU"
    if item.whole_row is not None:
        return "the parameter is a part of another, cut along its rows"
    if item.grad_factor is not None and not is_plain(item.grad_factor):
        return "the gradient's factor is not a plain tensor on the CPU"
    lr = item.hyper.lr
    if isinstance(lr, Tensor) and (lr.dim() or lr.device.type != "cpu"):
        return "lr is a tensor with dimensions or not on the CPU"
    for stored in item.moments.values():
        if not stored_as_specified(stored.codec, stored.fields, item.param.shape):
            return "the stored moments are not contiguous tensors on the CPU"
    return unsupported_codecs(rule, {name: s.codec for name, s in item.moments.items()})


def step_parameter(
    item: ParameterStep,
    *,
    threads: int | None = None,
    instruction_set: str | None = None,
) -> Tensor:
    """Update one parameter and its stored moments in place, as the eager `step_parameter` does.

    Results do not depend on threads or instruction sets. A parameter or gradient that is not
    contiguous is copied for the step.

    Args:
        item: a step for which `unsupported_step` found nothing.
        threads: number of threads; torch's by default.
        instruction_set: one of the library's; the fastest by default.

    Returns:
        int64 0-d tensor: blocks whose new moments were not all finite; of Adam-mini, segments.

    Raises:
        BackendUnavailableError: there is no library, or it has no such instruction set here.
    """
    param = item.param.contiguous()
    grad = item.grad.contiguous()
    step = _describe(item, param, grad)
    threads = thread_count(param.numel(), threads)
    if isinstance(item.hyper, LAMBHyper):
        blocks = next(iter(item.moments.values())).codec.grid(param.shape)
        sums = torch.empty(blocks.rows, blocks.blocks_per_row, 2, dtype=torch.float64, device="cpu")
        bad = native_library().lamb_step(step, sums, threads, instruction_set)
    elif isinstance(item.moments[MOMENTS[1]].codec, SegmentMean):
        bad = step_segments(item, step, threads, instruction_set)
    else:
        bad = native_library().step(step, threads, instruction_set)
    if param is item.param:
        # Writing through a pointer, unlike PyTorch's own operations, is not seen by autograd.
        torch.autograd.graph.increment_version(param)
    else:
        item.param.copy_(param)
    return torch.tensor(bad, device="cpu")


def _describe(item: ParameterStep, param: Tensor, grad: Tensor) -> Step:
    """Return the step of contiguous tensors, which must outlive it."""
    first, second = (item.moments[name] for name in MOMENTS)
    if isinstance(second.codec, SegmentMean):
        layout, own = first_layout(first.codec, tuple(param.shape)), Moment()
    else:
        layout = describe_layout(first.codec, tuple(param.shape))
        own = describe_moment(second.codec, second.fields)
    return Step(
        param=address(param),
        grad=address(grad),
        first=describe_moment(first.codec, first.fields),
        second=own,
        layout=layout,
        first_index=item.first_index,
        param_dtype=DTYPES[param.dtype],
        grad_dtype=DTYPES[grad.dtype],
        k0=item.keys.k0 & 0xFFFFFFFF,
        k1=item.keys.k1 & 0xFFFFFFFF,
        skip_nonfinite=item.skip_nonfinite,
        round_param=item.stochastic_rounding and param.dtype == torch.bfloat16,
        maximize=item.hyper.maximize,
        grad_factor=1.0 if item.grad_factor is None else float(item.grad_factor),
        **_scalars(item.hyper),
    )


def _scalars(hyper: AdamWHyper | LAMBHyper) -> dict[str, float]:
    weight = 1.0 - hyper.beta1
    from_grad = weight >= 0.5  # as torch.lerp
    scalars = {
        "lerp_from_grad": from_grad,
        "lerp": weight - 1.0 if from_grad else weight,
        "beta2": hyper.beta2,
        "one_minus_beta2": 1.0 - hyper.beta2,
        "inverse_root_correction2": 1.0 / math.sqrt(hyper.bias_correction2),
        "eps": hyper.eps,
    }
    if isinstance(hyper, AdamWHyper):
        return scalars | {
            "decay": float(1.0 - hyper.lr * hyper.weight_decay),
            "rate": float(hyper.lr / hyper.bias_correction1),
            "limit": hyper.limit * hyper.bias_correction1,
        }
    return scalars | {
        "inverse_correction1": 1.0 / hyper.bias_correction1,
        "weight_decay": hyper.weight_decay,
        "adapt": hyper.adapt,
        "trust_clip": hyper.trust_clip,
        "lr": float(hyper.lr),
    }
