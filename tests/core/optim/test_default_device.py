"""Nothing depends on torch's default device: every allocation names its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini, TurboAdam, checkpoint, convert, stats
from luma_core.optim import CompressedOptimizer, parity_check, step_in_backward

Build = Callable[..., CompressedOptimizer]

OPTIMIZERS: dict[str, tuple[Build, dict[str, object]]] = {
    "luma": (LUMA, {}),
    "luma-whole": (LUMA, {"block_size": None, "nonfinite": "raise"}),
    "turboadam": (TurboAdam, {}),
    "turboadam-8bit": (TurboAdam, {"preset": "8bit"}),
    "turboadam-costate": (TurboAdam, {"m_codec": "costate", "error_feedback": True}),
    "adam-mini": (AdamMini, {}),
    "adam-mini-fp8": (AdamMini, {"m_dtype": "fp8"}),
    "lamb": (LAMB, {"max_grad_norm": 0.1}),
    "lamb-bf16": (LAMB, {"codec": "bf16"}),
}
every_optimizer = pytest.mark.parametrize(
    ("build", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys()
)


def surface(device: str, folder: Path, build: Build, options: dict[str, object]) -> torch.Tensor:
    """Use all that an optimizer offers, and return what became of the parameters."""
    with torch.device(device):
        model = nn.Sequential(nn.Linear(300, 64), nn.Embedding(30, 40))
    generator = torch.Generator(device).manual_seed(3)
    for param in model.parameters():
        nn.init.normal_(param, generator=generator)

    def run(optimizer: CompressedOptimizer) -> None:
        for param in model.parameters():
            param.grad = torch.ones_like(param) * 0.1 * param.detach().sin()
        optimizer.step()

    optimizer = build(model.named_parameters(), **options)
    run(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    checkpoint.save(folder / "a", optimizer=optimizer, model=model)
    checkpoint.save(folder / "b", optimizer=optimizer, model=model, base=folder / "a")
    other = build(model.named_parameters(), **options)
    checkpoint.load(folder / "b", optimizer=other, model=model)
    run(other)
    checkpoint.save(folder / "c", optimizer=other, wait=False).result()
    stats.compute(other)
    stats.compute(checkpoint.open(folder / "c"))
    other.import_adamw_state(other.export_adamw_state())  # type: ignore[attr-defined]
    run(other)
    convert.convert(folder / "c", folder / "c.pt", to="adamw")
    convert.convert(folder / "c.pt", folder / "d", to="luma")
    if isinstance(other, AdamMini):
        other.telemetry()
    if not {"nonfinite", "max_grad_norm"} & options.keys():
        handles = step_in_backward(model, other)
        sum(param.sin().sum() for param in model.parameters()).backward()  # type: ignore[union-attr]
        handles.remove()
    for mode, place in (("host", None), ("disk", folder / "state"), ("cpu-step", None)):
        kept = build(model.named_parameters(), **options, offload=mode, offload_directory=place)
        run(kept)
        kept.load_state_dict(kept.state_dict())
        run(kept)
        del kept
    return torch.cat([param.detach().flatten() for param in model.parameters()]).cpu()


@every_optimizer
def test_everything_works_under_another_default_device(
    tmp_path: Path, build: Build, options: dict[str, object]
) -> None:
    expected = surface("cpu", tmp_path / "plain", build, options)
    with torch.device("meta"):
        assert torch.equal(surface("cpu", tmp_path / "meta", build, options), expected)


@pytest.mark.gpu
@every_optimizer
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_everything_works_where_cuda_is_the_default_device(
    tmp_path: Path, device: str, build: Build, options: dict[str, object]
) -> None:
    expected = surface(device, tmp_path / "plain", build, options)
    torch.set_default_device("cuda")
    try:
        assert torch.equal(surface(device, tmp_path / "cuda", build, options), expected)
    finally:
        torch.set_default_device(None)


def test_parity_is_checked_under_another_default_device() -> None:
    model = nn.Linear(40, 3)
    with torch.device("meta"):
        report = parity_check(
            lambda m: LUMA(m.named_parameters()),
            lambda m: torch.optim.AdamW(m.parameters()),
            model=model,
            steps=1,
        )
    assert report.rows
