"""Launcher of the native step."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from luma_core.codecs import Codec, SegmentMean
from luma_core.rules import AdamMiniRule, ParameterStep, Rule
from luma_kernels.cpu.coding import (
    DTYPES,
    describe_layout,
    describe_moment,
    is_plain,
    moment_kind,
    stored_as_specified,
)
from luma_kernels.cpu.library import address, native_library
from luma_kernels.cpu.mini import describe_segments, first_layout, unsupported_first
from luma_kernels.cpu.rules import BY_HYPER, LAMB, MINI, RULES
from luma_kernels.cpu.structs import NONE, Moment, Step


def unsupported_codecs(rule: Rule, codecs: Mapping[str, Codec]) -> str:
    """Return why the library cannot step moments stored by ``codecs``; empty if it can."""
    known = RULES.get(type(rule))
    if known is None:
        return f"there is no native kernel of the rule {type(rule).__name__}"
    first, *others = codecs.values()
    if type(rule) is AdamMiniRule and isinstance(others[0], SegmentMean):
        return unsupported_first(first)
    kinds = _kinds(codecs)
    sizes = {codec.block_size for codec in codecs.values()}
    table = native_library().instances
    if None in kinds or (known.number, *kinds, False) not in table or len(sizes) > 1:
        names = " and ".join(codec.name for codec in codecs.values())
        return f"there is no native kernel of the codecs {names} together"
    if None in sizes and (known.number, *kinds, True) not in table:
        return f"there is no native kernel of {type(rule).__name__} and block_size=None"
    return ""


def _kinds(codecs: Mapping[str, Codec]) -> tuple[int | None, int | None]:
    """Return how the library stores the moments of a rule that has one or two."""
    first, *others = map(moment_kind, codecs.values())
    return first, others[0] if others else NONE


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
    if is_unusual_rate(item.hyper.lr):
        return "lr is a tensor with dimensions or not on the CPU"
    for stored in item.moments.values():
        if not stored_as_specified(stored.codec, stored.fields, item.param.shape):
            return "the stored moments are not contiguous tensors on the CPU"
    return unsupported_codecs(rule, {name: s.codec for name, s in item.moments.items()})


def is_unusual_rate(lr: float | Tensor) -> bool:
    """Return whether a learning rate is no number that the library can be given."""
    return isinstance(lr, Tensor) and bool(lr.dim() or lr.device.type != "cpu")


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
    param, grad = item.param.contiguous(), item.grad.contiguous()
    described = describe_step(item, param, grad)
    available = torch.get_num_threads() if threads is None else threads
    (bad,) = native_library().steps([described.step], available, instruction_set)
    if param is item.param:
        # Writing through a pointer, unlike PyTorch's own operations, is not seen by autograd.
        torch.autograd.graph.increment_version(param)
    else:
        item.param.copy_(param)
    return torch.tensor(bad, device="cpu")


class DescribedStep(NamedTuple):
    """A step for the library, and what its addresses are of beside the tensors of the step."""

    step: Step
    room: tuple[object, ...] = ()


def describe_step(item: ParameterStep, param: Tensor, grad: Tensor) -> DescribedStep:
    """Return the step of contiguous tensors, which must outlive it."""
    native, shape = BY_HYPER[type(item.hyper)], tuple(param.shape)
    first, *others = item.moments.values()
    segmented = bool(others) and isinstance(others[0].codec, SegmentMean)
    second = Moment(kind=NONE)
    if others and not segmented:
        second = describe_moment(others[0].codec, others[0].fields)
    layout = first_layout(first.codec, shape) if segmented else describe_layout(first.codec, shape)
    step = Step(
        param=address(param),
        grad=address(grad),
        first=describe_moment(first.codec, first.fields),
        second=second,
        layout=layout,
        first_index=item.first_index,
        param_dtype=DTYPES[param.dtype],
        grad_dtype=DTYPES[grad.dtype],
        k0=item.keys.k0 & 0xFFFFFFFF,
        k1=item.keys.k1 & 0xFFFFFFFF,
        skip_nonfinite=item.skip_nonfinite,
        round_param=item.stochastic_rounding and param.dtype == torch.bfloat16,
        maximize=item.hyper.maximize,
        rule=MINI if segmented else native.number,
        grad_factor=1.0 if item.grad_factor is None else float(item.grad_factor),
    )
    for index, value in enumerate(native.scalars(item.hyper)):
        step.scalars[index] = value
    if segmented:
        segments = describe_segments(item)
        step.segments = ctypes.addressof(segments.segments)
        return DescribedStep(step, segments)
    if native.number == LAMB:
        blocks = first.codec.grid(shape)
        sums = torch.empty(blocks.rows, blocks.blocks_per_row, 2, dtype=torch.float64, device="cpu")
        step.sums = address(sums)
        return DescribedStep(step, (sums,))
    return DescribedStep(step)
