"""What statistics are: frozen values of JSON types only, never NaN or infinity."""

from __future__ import annotations

from dataclasses import dataclass

STATS_VERSION = 2
"""Version of what `CheckpointStats` holds; one that was kept with another is measured again."""

HISTOGRAM_LOW = -32.0
"""log10 of the lowest edge of every histogram; smaller magnitudes count as ``below``."""

HISTOGRAM_WIDTH = 0.5
"""Width of a bin in decades."""

HISTOGRAM_BINS = 80
"""Number of bins; magnitudes from ``1e8``, the highest edge, count as ``above``."""

HISTOGRAM_EDGES = tuple(HISTOGRAM_LOW + HISTOGRAM_WIDTH * i for i in range(HISTOGRAM_BINS + 1))
"""log10 of the ``HISTOGRAM_BINS + 1`` edges, the same for every histogram."""


@dataclass(frozen=True)
class Histogram:
    """Counts of finite values by ``log10(|x|)``, over the fixed `HISTOGRAM_EDGES`.

    Attributes:
        counts: values of each bin, ``HISTOGRAM_BINS`` of them; a bin holds its lower edge.
        zeros: values that are exactly zero.
        below: non-zero values under the lowest edge.
        above: finite values from the highest edge up.
    """

    counts: tuple[int, ...]
    zeros: int
    below: int
    above: int


@dataclass(frozen=True)
class QuantityStats:
    """Magnitudes of one quantity: a moment, or the update.

    Attributes:
        elements: elements looked at.
        nonfinite: NaN and infinite ones among them; left out of everything else here.
        rms: root of the mean square, summed in float64; ``None`` without a finite element.
        max: largest magnitude; ``None`` without a finite element.
        histogram: magnitudes by powers of ten.
    """

    elements: int
    nonfinite: int
    rms: float | None
    max: float | None
    histogram: Histogram


@dataclass(frozen=True)
class ScaleHistogram:
    """Counts of finite scales by power of two.

    Attributes:
        first: exponent of the first bin, from -149 to 127; 0 without bins.
        counts: ``counts[i]`` scales lie from ``2**(first + i)`` up to, and not at, twice that. The
            first bin and the last one are not empty.
        zeros: scales that are exactly zero, as those of blocks of zeros.
    """

    first: int
    counts: tuple[int, ...]
    zeros: int


@dataclass(frozen=True)
class ScaleStats:
    """The block scales of one moment.

    Attributes:
        blocks: number of scales.
        nonfinite: NaN and infinite ones among them; left out of the rest.
        min: smallest scale; like the next two ``None`` without a finite one.
        median: of a parameter, exact; in a total, exact for powers of two and else up to 0.1%
            too small.
        max: largest scale.
        histogram: finite scales by power of two.
    """

    blocks: int
    nonfinite: int
    min: float | None
    median: float | None
    max: float | None
    histogram: ScaleHistogram


@dataclass(frozen=True)
class MomentStats:
    """One stored moment of a parameter, or of all parameters together.

    Attributes:
        moment: its name, ``exp_avg`` or ``exp_avg_sq``.
        codec: name of its codec; in a total all of them, joined by ``+``.
        value: the decoded values.
        scale: the block scales; ``None`` for codecs without.
        zero_share: share of zero codes, or of zero values for codecs without codes; ``None``
            where there are no elements.
        saturated_share: share of codes at the end of the grid; ``None`` for codecs without codes.
        entropy_bits: order-0 entropy of the codes, in bits per element: what a perfect entropy
            coder that knows only their frequencies would need. ``None`` for codecs without codes.
    """

    moment: str
    codec: str
    value: QuantityStats
    scale: ScaleStats | None
    zero_share: float | None
    saturated_share: float | None
    entropy_bits: float | None


@dataclass(frozen=True)
class ParameterStats:
    """The state of one parameter.

    Attributes:
        name: the parameter's name.
        shape: its shape.
        dtype: its dtype without ``torch.``.
        group: index of its parameter group.
        elements: its elements.
        step: completed steps.
        nonfinite: blocks left out so far because their update was not finite.
        state_bytes: bytes of all persistent tensors of its state; 0 without state.
        bits_per_parameter: ``8 * state_bytes / elements``; ``None`` without elements.
        update: ``m_hat / (sqrt(v_hat) + eps)`` with the group's betas and eps and the
            parameter's step, in float64; no elements where there is no such state.
        moments: the stored moments; empty without state.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    elements: int
    step: int
    nonfinite: int
    state_bytes: int
    bits_per_parameter: float | None
    update: QuantityStats
    moments: tuple[MomentStats, ...]


@dataclass(frozen=True)
class TotalStats:
    """All chosen parameters together.

    Attributes:
        parameters: number of parameters.
        parameters_without_state: those among them that have had no gradient yet.
        elements: their elements.
        step: largest step.
        nonfinite: blocks left out so far because their update was not finite.
        state_bytes: bytes of all persistent state tensors.
        bits_per_parameter: ``8 * state_bytes / elements``; ``None`` without elements.
        update: the updates of all parameters.
        moments: each moment over all parameters that have it.
    """

    parameters: int
    parameters_without_state: int
    elements: int
    step: int
    nonfinite: int
    state_bytes: int
    bits_per_parameter: float | None
    update: QuantityStats
    moments: tuple[MomentStats, ...]


@dataclass(frozen=True)
class CheckpointStats:
    """Statistics of an optimizer's state, live or saved.

    Attributes:
        total: all chosen parameters together.
        parameters: each of them, in the source's order.
        histogram_edges: log10 of the edges of every histogram, so that a reader of the JSON
            needs nothing else.
        version: `STATS_VERSION`.
    """

    total: TotalStats
    parameters: tuple[ParameterStats, ...]
    histogram_edges: tuple[float, ...] = HISTOGRAM_EDGES
    version: int = STATS_VERSION


@dataclass(frozen=True)
class ErrorStats:
    """How far a quantity of ``b`` is from that of ``a``.

    Attributes:
        elements: elements compared.
        nonfinite: those that are NaN or infinite in ``a`` or ``b``; left out of the rest.
        differing: elements whose values differ.
        relative_rms: ``rms(b - a) / rms(a)``; ``None`` where ``a`` is all zero and ``b`` is not,
            and where nothing finite was compared.
        relative_max: ``max|b - a| / max|a|``; ``None`` likewise.
        element_max: largest ``|b - a| / |a|`` over the elements where ``a`` is not zero; ``None``
            where there are none.
    """

    elements: int
    nonfinite: int
    differing: int
    relative_rms: float | None
    relative_max: float | None
    element_max: float | None


@dataclass(frozen=True)
class MomentDiff:
    """One moment in two states.

    Attributes:
        moment: its name.
        codec_a: name of its codec in ``a``.
        codec_b: name of its codec in ``b``.
        error: difference of the decoded values.
        codes_differ_share: share of codes that differ; ``None`` where the codecs differ or have
            no codes, or there are no elements.
    """

    moment: str
    codec_a: str
    codec_b: str
    error: ErrorStats
    codes_differ_share: float | None


@dataclass(frozen=True)
class ParameterDiff:
    """One parameter in two states.

    Attributes:
        name: the parameter's name.
        step_a: completed steps in ``a``.
        step_b: completed steps in ``b``.
        identical: whether shape, step, noise key, count of blocks left out, codecs and every
            stored tensor are equal bit for bit.
        not_compared: why values were not compared, for instance two shapes; ``None`` where they
            were. The rest is then empty.
        update: difference of ``m_hat / (sqrt(v_hat) + eps)``, each with its own options.
        moments: differences of the moments.
    """

    name: str
    step_a: int
    step_b: int
    identical: bool
    not_compared: str | None
    update: ErrorStats
    moments: tuple[MomentDiff, ...]


@dataclass(frozen=True)
class TotalDiff:
    """All compared parameters together.

    Attributes:
        parameters: parameters that are in both.
        identical_parameters: those that are equal bit for bit.
        update: difference of all updates.
        moments: differences of each moment; codecs joined by ``+``.
    """

    parameters: int
    identical_parameters: int
    update: ErrorStats
    moments: tuple[MomentDiff, ...]


@dataclass(frozen=True)
class StateDiff:
    """Two optimizer states side by side.

    Attributes:
        identical: whether both have the same parameters and each is equal bit for bit.
        total: all compared parameters together.
        parameters: each parameter that is in both, in the order of ``a``.
        only_in_a: names that ``b`` lacks.
        only_in_b: names that ``a`` lacks.
    """

    identical: bool
    total: TotalDiff
    parameters: tuple[ParameterDiff, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
