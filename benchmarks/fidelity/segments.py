"""Adam-mini's idea in parts: AdamW where some matrices share second moments, in float32.

An optimizer named ``segments:PARTS`` is AdamW whose second moments are means over the segments of
Adam-mini in ``PARTS``, any of ``embedding``, ``attention`` (queries and keys by head, values by
row) and ``mlp`` (with attention outputs), joined by ``+``. ``factored`` is the product of means
over rows and columns instead, everywhere; ``columns`` the mean over columns. Modifiers follow, each
behind a slash: ``scaleS`` multiplies second moments by ``S``; ``clipC`` bounds each element of an
update by ``C``; ``powerP`` takes ``mean(|g|**P) ** (2 / P)`` instead of the mean of squares;
``beta2B`` is another decay rate. docs/experiments.md tells what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luma_core.errors import ConfigurationError

PREFIX = "segments:"
PARTS = ("embedding", "attention", "mlp")
EVERYWHERE = ("factored", "columns")
MODIFIERS = ("scale", "clip", "power", "beta2")


def read_name(name: str) -> tuple[str, dict[str, float]]:
    """Return the parts and the modifiers of an optimizer's name.

    Raises:
        ConfigurationError: a part or a modifier is unknown.
    """
    parts, *rest = name.removeprefix(PREFIX).split("/")
    if parts not in EVERYWHERE and not set(parts.split("+")) <= set(PARTS):
        raise ConfigurationError(
            f"--optimizers {name!r} must name {', '.join(EVERYWHERE)} or some of "
            f"{', '.join(PARTS)}, joined by '+'."
        )
    modifiers = {}
    for text in rest:
        key = next((key for key in MODIFIERS if text.startswith(key)), None)
        try:
            modifiers[key or ""] = float(text.removeprefix(key or "/"))
        except ValueError:
            raise ConfigurationError(
                f"--optimizers {name!r}: {text!r} must be one of {', '.join(MODIFIERS)} and a "
                "number."
            ) from None
    return parts, modifiers


def part_of(name: str) -> str:
    """Return which of ``PARTS`` a matrix of the benchmark's GPT-2 belongs to."""
    if "wte" in name or "wpe" in name:
        return "embedding"
    return "attention" if "c_attn" in name else "mlp"


class SegmentProbe(torch.optim.Optimizer):
    """AdamW whose second moments are shared as ``parts`` says; norms and biases keep their own."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        parts: str,
        modifiers: Mapping[str, float],
        heads: int,
        **options: Any,
    ) -> None:
        names = {param: name for group in groups for name, param in group["params"]}
        for group in groups:
            group["params"] = [param for _, param in group["params"]]
        beta2 = modifiers.get("beta2", options["betas"][1])
        super().__init__(groups, {**options, "betas": (options["betas"][0], beta2)})
        self._parts, self._heads, self._steps = parts, heads, 0
        self._scale = modifiers.get("scale", 1.0)
        self._clip = modifiers.get("clip")
        self._power = modifiers.get("power", 2.0)
        self._shared = {
            param: part_of(name)
            for param, name in names.items()
            if param.ndim > 1 and (parts in EVERYWHERE or part_of(name) in parts.split("+"))
        }
        for param in names:
            self.state[param] = {
                "exp_avg": torch.zeros_like(param),
                "exp_avg_sq": torch.zeros_like(param),
            }

    def _mean(self, x: Tensor, part: str) -> Tensor:
        if self._parts == "columns":
            return x.mean(0, keepdim=True).expand_as(x)
        rows = x.mean(1, keepdim=True)
        if self._parts == "factored":
            return rows * x.mean(0, keepdim=True) / rows.mean().clamp_min(1e-30)
        if part == "attention":
            query, key, value = rows.view(3, self._heads, -1)
            shared = (y.mean(1, keepdim=True).expand_as(y) for y in (query, key))
            rows = torch.stack([*shared, value]).view(-1, 1)
        return rows.expand_as(x)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step."""
        self._steps += 1
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                state, part = self.state[param], self._shared.get(param)
                grad, v = param.grad, state["exp_avg_sq"]
                m = state["exp_avg"].lerp_(grad, 1 - beta1)
                if part is None or self._power == 2.0:
                    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                else:
                    powers = self._mean(grad.double().abs() ** self._power, part)
                    v.mul_(beta2).add_(powers ** (2 / self._power), alpha=1 - beta2)
                second = v if part is None else self._scale * self._mean(v, part)
                root = (second / (1 - beta2**self._steps)).sqrt() + group["eps"]
                update = m / (1 - beta1**self._steps) / root
                if part is not None and self._clip:
                    update.clamp_(-self._clip, self._clip)
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.sub_(update, alpha=group["lr"])
