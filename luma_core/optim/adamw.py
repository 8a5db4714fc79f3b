"""AdamW whose moments are kept in any codec; LUMA and TurboAdam are it with codecs chosen."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.common_options import CommonKeywords, show_common_options
from luma_core.optim.presets import DEFAULT_BLOCK_SIZE, CodecChoice
from luma_core.rules import AdamWRule, Rule


@show_common_options
class AdamW(AdamWStateOptimizer):
    """AdamW (Loshchilov and Hutter, 2019) with its state in any codec; by default that of `LUMA`.

    docs/optimizers.md compares the codecs. Runs with equal seeds are bit-identical, and so are
    runs resumed from saved state.

    Args:
        params: parameters, parameter groups, or ``model.named_parameters()``. With names,
            checkpoints are matched by name, in any order. A group may set any option below but
            ``backend`` and those of offloading for itself.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the two moments, numbers or tensors of one element, which are read on
            the host at each step; ``eps`` and ``weight_decay`` too may be such tensors.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        codec: how the moments are stored: ``"luma16"``, ``"fp32"``, ``"bf16"``, ``"16bit"``,
            ``"8bit"``, ``"5bit"``, or a mapping of ``"exp_avg"`` and ``"exp_avg_sq"`` to codecs:
            names such as ``"luma16_m"``, or what ``codec.to_dict()`` returns.
        block_size: elements per scale of codecs given by name, blocks restarting at each row of a
            parameter; ``None`` keeps one scale per tensor, where the codec has such a form.

    Raises:
        ConfigurationError: an option cannot work.
        StorageError: ``offload_directory`` cannot be used, or another optimizer uses it.
        UnsupportedParameterError: a parameter that needs gradients is not a dense float32, bfloat16
            or float16 tensor, or has no shape yet. Frozen ones may be of any dtype.
    """

    algorithm: str = "adamw"
    rule: ClassVar[Rule] = AdamWRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        codec: CodecChoice = "luma16",
        block_size: int | None = DEFAULT_BLOCK_SIZE,
        **common: Unpack[CommonKeywords],
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay},
            storage={"codec": codec, "block_size": block_size},
            **common,
        )
