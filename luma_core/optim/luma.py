"""LUMA: AdamW whose two moments take 16 bits per parameter each."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.codecs import MIN_COMPRESS_ELEMENTS, Luma16M, Luma16V
from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.offload import DEFAULT_BUFFER_BYTES, offload_options
from luma_core.rules import AdamWRule, Rule


def luma_codecs(*, block_size: int | None = 128) -> dict[str, dict[str, Any]]:
    """Return LUMA's codec configuration by moment.

    Args:
        block_size: elements per scale block, or ``None`` for one scale per tensor.
    """
    return {
        "exp_avg": Luma16M(block_size=block_size).to_dict(),
        "exp_avg_sq": Luma16V(block_size=block_size).to_dict(),
    }


class LUMA(AdamWStateOptimizer):
    """AdamW with its state in about 4.02 bytes per parameter instead of 8.

    The first moment is kept on a signed logarithmic grid, the second on a logarithmic grid of its
    square root, both relative to their blocks and with unbiased stochastic rounding. Runs with
    equal seeds are bit-identical, and so are runs resumed from saved state.

    Args:
        params: parameters, parameter groups, or ``model.named_parameters()``. With names,
            checkpoints are matched by name, in any order. A group may set any option below but
            ``backend`` for itself.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments, numbers or tensors of one element, which are read on
            the host at each step; ``eps`` and ``weight_decay`` too may be such tensors.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        backend: ``"auto"`` picks the fastest that runs here; ``"pytorch"``,
            ``"native"`` (CPU) or ``"triton"`` insist.
        block_size: elements per scale, blocks restarting at each row of a parameter; ``None`` keeps
            one scale per tensor.
        min_compress_elements: flat tensors (fewer than two dimensions, or rows of fewer than 32
            elements) below this size keep their moments in float32.
        stochastic_rounding: whether bfloat16 parameters are rounded stochastically, so that updates
            below half a unit in the last place are not lost. float16 is rounded to nearest.
        nonfinite: what a NaN or infinite gradient element does. ``"skip"`` leaves its block (the
            tensor, with ``block_size=None``) untouched for that step and counts it in
            ``state[p]["nonfinite"]``; ``"raise"`` raises before anything changes, at the price of a
            host synchronisation per step; ``"propagate"`` lets it into the block.
        maximize: ascend instead of descend.
        capturable: allow `step` inside a captured CUDA graph. ``lr`` must then be a float32 tensor
            on the parameters' device for changes of it to be seen by the graph's replays.
        amsgrad: as ``torch.optim.AdamW`` has it; must be ``False`` here.
        foreach: as ``torch.optim.AdamW`` has it, without effect: ``backend`` says how to step.
        fused: likewise.
        differentiable: as ``torch.optim.AdamW`` has it; must be ``False`` here.
        seed: of the rounding noise, an integer of 0 or more. ``None`` is 0, so that replicas stay
            bit-identical whatever ``torch.manual_seed`` was given; another one gives other noise.
            ``"torch"`` draws it from torch's global generator, which nothing else does here.
        offload: where state lives if not beside its parameter; see docs/offload.md. ``"host"``:
            in pinned memory of the host, from where it comes to the GPU's step in chunks.
            ``"disk"``: in a file, likewise, also of parameters on the CPU. Both give the bits of
            ``None``. ``"cpu-step"``: in the host's memory, and the CPU steps. ``"auto"`` chooses,
            and logs why.
        offload_directory: where the file is made, of this optimizer alone. ``"disk"`` needs it, and
            ``"auto"`` may use it.
        offload_buffer_bytes: memory for state on its way, of the GPU, or of the host for parameters
            that are there. It grows to twice the state of the largest parameter that cannot be cut.
            With ``"cpu-step"``, memory of the host for parameters and gradients on their way.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: ``offload_directory`` cannot be used, or another optimizer uses it.
        UnsupportedParameterError: a parameter that needs gradients is not a dense float32, bfloat16
            or float16 tensor, or has no shape yet. Frozen ones may be of any dtype.
    """

    algorithm: ClassVar[str] = "luma"
    rule: ClassVar[Rule] = AdamWRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        backend: str = "auto",
        block_size: int | None = 128,
        min_compress_elements: int = MIN_COMPRESS_ELEMENTS,
        stochastic_rounding: bool = True,
        nonfinite: str = "skip",
        maximize: bool = False,
        capturable: bool = False,
        amsgrad: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
        seed: int | str | None = None,
        offload: str | None = None,
        offload_directory: str | PathLike[str] | None = None,
        offload_buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> None:
        self._block_size = block_size
        kept = offload_options(offload, offload_directory, offload_buffer_bytes)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "min_compress_elements": min_compress_elements,
            "stochastic_rounding": stochastic_rounding,
            "nonfinite": nonfinite,
            "maximize": maximize,
            "capturable": capturable,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "fused": fused,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, backend=backend, seed=seed, offload=kept)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_block_size": self._block_size}

    def group_codecs(self, group: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the codec configuration of each moment for a new group's options."""
        return luma_codecs(block_size=group.get("block_size", self._block_size))
