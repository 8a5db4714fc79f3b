"""The layouts that `src/native.h` declares, field by field."""

from __future__ import annotations

from ctypes import Structure, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from typing import ClassVar

INTERFACE_VERSION = 6
"""``kInterfaceVersion`` of the sources that these layouts were written for."""

PLAIN, LOG_SIGNED, LOG_ROOT, TABLE, ROOT, LOG, BFLOAT, FP8, NONE = range(9)
"""How a moment is stored: floats, codes of it or of its square root, packed codes; or not so."""

SCALARS = 16
"""``kScalars`` of ``native.h``."""


class Layout(Structure):
    """How elements form blocks; ``block`` 0 means one block that holds all."""

    _fields_: ClassVar = [("rows", c_int64), ("cols", c_int64), ("block", c_int64)]


class Moment(Structure):
    """One stored moment."""

    _fields_: ClassVar = [
        ("values", c_void_p),
        ("exponent", c_void_p),
        ("mantissa", c_void_p),
        ("scale", c_void_p),
        ("levels", c_void_p),
        ("thresholds", c_void_p),
        ("kind", c_int32),
        ("octaves", c_int32),
        ("mantissa_bits", c_int32),
        ("bits", c_int32),
        ("floor", c_float),
        ("step", c_float),
        ("per_step", c_float),
        ("rise", c_int32),
    ]


class Step(Structure):
    """One parameter's step."""

    _fields_: ClassVar = [
        ("param", c_void_p),
        ("grad", c_void_p),
        ("first", Moment),
        ("second", Moment),
        ("layout", Layout),
        ("first_index", c_int64),
        ("param_dtype", c_int32),
        ("grad_dtype", c_int32),
        ("k0", c_uint32),
        ("k1", c_uint32),
        ("skip_nonfinite", c_int32),
        ("round_param", c_int32),
        ("maximize", c_int32),
        ("rule", c_int32),
        ("grad_factor", c_float),
        ("scalars", c_double * SCALARS),
        ("sums", c_void_p),
        ("segments", c_void_p),
    ]


class Instance(Structure):
    """A kernel that the library has."""

    _fields_: ClassVar = [
        ("rule", c_int32),
        ("first", c_int32),
        ("second", c_int32),
        ("whole", c_int32),
    ]


class Segments(Structure):
    """The Hessian blocks of a parameter, their second moments, and room for a step."""

    _fields_: ClassVar = [
        ("outer", c_int64),
        ("reduce", c_int64),
        ("length", c_int64),
        ("inner", c_int64),
        ("runs", c_void_p),
        ("runs_count", c_int64),
        ("per_outer", c_int64),
        ("pieces", c_int64),
        ("second", c_void_p),
        ("sums", c_void_p),
        ("roots", c_void_p),
        ("alone", c_int32),
    ]


class Squares(Structure):
    """A tensor whose squares are added up."""

    _fields_: ClassVar = [
        ("values", c_void_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("dtype", c_int32),
        ("flat", c_int32),
    ]


class Coding(Structure):
    """One moment to encode or decode."""

    _fields_: ClassVar = [
        ("plain", c_void_p),
        ("draws", c_void_p),
        ("stored", Moment),
        ("layout", Layout),
        ("plain_dtype", c_int32),
    ]
