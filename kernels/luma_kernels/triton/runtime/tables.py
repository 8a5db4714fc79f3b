"""The device tables of a fused step: their columns, the kernel that fills them, and readers.

``table``, int64 ``[tensors, WIDTH]``, changes only when a pointer does; ``rows``, int32
``[tensors, ROW]``, is written each step by `prepare_kernel` and holds all that depends on step,
learning rate and gradient scaler; ``owner``, int32 ``[programs]``, is the tensor of each program.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from luma_kernels.triton.runtime.noise import mix

PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
FIRST = tl.constexpr(2)
FIRST_EXPONENT = tl.constexpr(3)
SECOND = tl.constexpr(4)
SECOND_EXPONENT = tl.constexpr(5)
NONFINITE = tl.constexpr(6)
STEP = tl.constexpr(7)
NUMEL = tl.constexpr(8)
FIRST_PROGRAM = tl.constexpr(9)
NOISE_KEY = tl.constexpr(10)
GROUP = tl.constexpr(11)
COLS = tl.constexpr(12)
BLOCKS_PER_ROW = tl.constexpr(13)
SECOND_WINDOW = tl.constexpr(14)
FIRST_INDEX = tl.constexpr(15)
WIDTH = tl.constexpr(16)

ROW = tl.constexpr(17)
OPTIONS = tl.constexpr(9)
NEW_SHARE = tl.constexpr(0)
FACTOR = tl.constexpr(1)
BETA2 = tl.constexpr(2)
NEW_SHARE2 = tl.constexpr(3)
ROOT_FACTOR = tl.constexpr(4)
EPS = tl.constexpr(5)
DECAY = tl.constexpr(6)
RATE = tl.constexpr(7)
LOW_KEY = tl.constexpr(8)
HIGH_KEY = tl.constexpr(9)
ACTIVE = tl.constexpr(10)
ZERO = tl.constexpr(11)
INVERSE_CORRECTION = tl.constexpr(12)
WEIGHT_DECAY = tl.constexpr(13)
LR = tl.constexpr(14)
EXTRA_OPTION = tl.constexpr(15)
LIMIT = tl.constexpr(16)


@triton.jit
def store_float(pointer, value, mask):
    """Write a number into a row, as float32."""
    tl.store(pointer, value.to(tl.float32).to(tl.int32, bitcast=True), mask=mask)


@triton.jit(
    do_not_specialize=["tensors"], do_not_specialize_on_alignment=["found_inf", "grad_scale"]
)
def prepare_kernel(
    table,
    rows,
    group_options,
    group_pointers,
    maxima,
    found_inf,
    grad_scale,
    tensors,
    HAS_SCALER: tl.constexpr,
    LANES: tl.constexpr,
):
    """Advance each tensor's step and write its row.

    ``group_options`` is float64 ``[groups, OPTIONS]``: lr, log(beta1), log(beta2), beta1, beta2,
    eps, weight_decay, sign of the gradient, and one that is the rule's own. ``group_pointers``
    is int64 ``[groups, 2]``: the addresses of a float32 lr and of a float32 factor of gradients, or
    0 for none. ``maxima``, int32 ``[tensors, 2]``, is cleared for `maxima_kernel`.
    """
    tensor = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = tensor < tensors
    entry = table + tensor.to(tl.int64) * WIDTH
    active = 1
    inverse_scale = 1.0
    if HAS_SCALER:
        active = (tl.load(found_inf) == 0.0).to(tl.int32)
        inverse_scale = 1.0 / tl.load(grad_scale)

    step_at = tl.load(entry + STEP, mask=mask, other=0).to(tl.pointer_type(tl.int64))
    step = tl.load(step_at, mask=mask, other=0) + active
    tl.store(step_at, step, mask=mask)

    group = tl.load(entry + GROUP, mask=mask, other=0)
    option = group_options + group * OPTIONS
    lr = tl.load(option, mask=mask, other=0.0)
    lr_at = tl.load(group_pointers + group * 2, mask=mask, other=0)
    on_device = mask & (lr_at != 0)
    device_lr = tl.load(lr_at.to(tl.pointer_type(tl.float32)), mask=on_device, other=0.0)
    lr = tl.where(on_device, device_lr.to(tl.float64), lr)
    t = step.to(tl.float64)
    correction1 = 1.0 - tl.exp(t * tl.load(option + 1, mask=mask, other=-1.0))
    correction2 = 1.0 - tl.exp(t * tl.load(option + 2, mask=mask, other=-1.0))
    beta1 = tl.load(option + 3, mask=mask, other=0.0)
    beta2 = tl.load(option + 4, mask=mask, other=0.0)
    factor_at = tl.load(group_pointers + group * 2 + 1, mask=mask, other=0)
    clip = tl.load(
        factor_at.to(tl.pointer_type(tl.float32)), mask=mask & (factor_at != 0), other=1.0
    )
    factor = tl.load(option + 7, mask=mask, other=1.0) * inverse_scale * clip

    row = rows + tensor * ROW
    store_float(row + NEW_SHARE, 1.0 - beta1, mask)
    store_float(row + FACTOR, factor, mask)
    store_float(row + BETA2, beta2, mask)
    store_float(row + NEW_SHARE2, 1.0 - beta2, mask)
    store_float(row + ROOT_FACTOR, 1.0 / tl.sqrt(correction2), mask)
    store_float(row + EPS, tl.load(option + 5, mask=mask, other=0.0), mask)
    store_float(row + DECAY, 1.0 - lr * tl.load(option + 6, mask=mask, other=0.0), mask)
    store_float(row + RATE, -lr / correction1, mask)
    store_float(row + INVERSE_CORRECTION, 1.0 / correction1, mask)
    store_float(row + WEIGHT_DECAY, tl.load(option + 6, mask=mask, other=0.0), mask)
    store_float(row + LR, lr, mask)
    # Of the first moment over the divisor: `luma_core.rules.adamw.update_limit`.
    limit = 2.0 * tl.maximum((1.0 - beta1) / tl.sqrt(1.0 - beta2), 1.0)
    store_float(row + LIMIT, limit * correction1, mask)
    store_float(row + EXTRA_OPTION, tl.load(option + 8, mask=mask, other=0.0), mask)

    key = tl.load(entry + NOISE_KEY, mask=mask, other=0)
    mixed = mix(step.to(tl.uint32))
    k0 = mix(key.to(tl.uint32) ^ mixed)
    k1 = mix((key >> 32).to(tl.uint32) ^ mix(mixed + 0x9E3779B9))
    # The noise of a part is that of its place: see how `random_bits` takes both words of an index.
    first_index = tl.load(entry + FIRST_INDEX, mask=mask, other=0)
    k0 = k0 + first_index.to(tl.uint32)
    k1 = k1 ^ ((first_index >> 32).to(tl.uint32) * 0x9E3779B9)
    tl.store(row + LOW_KEY, k0.to(tl.int32, bitcast=True), mask=mask)
    tl.store(row + HIGH_KEY, k1.to(tl.int32, bitcast=True), mask=mask)
    tl.store(row + ACTIVE, tl.zeros_like(k0).to(tl.int32) + active, mask=mask)
    tl.store(maxima + tensor * 2, tl.zeros_like(k0).to(tl.int32), mask=mask)
    tl.store(maxima + tensor * 2 + 1, tl.zeros_like(k0).to(tl.int32), mask=mask)


@triton.jit
def row_float(row, INDEX: tl.constexpr):
    """Return a number of a row."""
    return tl.load(row + INDEX).to(tl.float32, bitcast=True)


@triton.jit
def bounded(update, limit, SKIP: tl.constexpr):
    """Return ``update`` within ``limit`` of 0; NaN, which is not stored with ``SKIP``, passes."""
    within = tl.minimum(tl.maximum(update, -limit), limit)
    return within if SKIP else tl.where(update == update, within, update)


@triton.jit
def pointer_of(entry, FIELD: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return one column of a tensor's table row as a pointer."""
    pointer = tl.load(entry + FIELD).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


class Numbers(NamedTuple):
    """A row as `prepare_kernel` wrote it: what a step's formula and its noise need.

    Attributes:
        new_share: ``1 - beta1``; `new_share2` is that of ``beta2``.
        factor: what gradients are multiplied by.
        root_factor: what the second moment's root is multiplied by; ``eps`` is added to it.
        decay: what the parameter is multiplied by.
        rate: what the update is multiplied by before it is added to the parameter.
        low_key: the noise's words, with `high_key`.
    """

    new_share: Any
    factor: Any
    beta2: Any
    new_share2: Any
    root_factor: Any
    eps: Any
    decay: Any
    rate: Any
    low_key: Any
    high_key: Any


@triton.jit
def row_numbers(row):
    """Return the numbers of a row."""
    return Numbers(
        row_float(row, NEW_SHARE),
        row_float(row, FACTOR),
        row_float(row, BETA2),
        row_float(row, NEW_SHARE2),
        row_float(row, ROOT_FACTOR),
        row_float(row, EPS),
        row_float(row, DECAY),
        row_float(row, RATE),
        tl.load(row + LOW_KEY).to(tl.uint32, bitcast=True),
        tl.load(row + HIGH_KEY).to(tl.uint32, bitcast=True),
    )


class Program(NamedTuple):
    """What a program works on.

    Attributes:
        pid: its number in the launch.
        tensor: its tensor's number.
        entry: its tensor's row of ``table``; `row` is that of ``rows``.
    """

    pid: Any
    tensor: Any
    entry: Any
    row: Any


@triton.jit
def program_of(table, rows, owner, first_tensor=0):
    """Return what this program works on; ``owner`` counts tensors from ``first_tensor``."""
    pid = tl.program_id(0)
    tensor = tl.load(owner + pid) + first_tensor
    return Program(pid, tensor, table + tensor.to(tl.int64) * WIDTH, rows + tensor * ROW)


@triton.jit
def is_skipped(row):
    """Return whether the gradient scaler leaves out this step."""
    return tl.load(row + ACTIVE) == 0


@triton.jit
def number_in_tensor(program):
    """Return a program's number among those of its tensor, int64."""
    return program.pid.to(tl.int64) - tl.load(program.entry + FIRST_PROGRAM)
