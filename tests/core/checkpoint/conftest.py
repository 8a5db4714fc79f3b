import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core.optim import LUMA


class Run:
    """A small model with its optimizer, some steps into training."""

    def __init__(self, *, steps: int = 3, seed: int = 0, named: bool = True, **options: Any):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(48, 40), nn.LayerNorm(40), nn.Linear(40, 6))
        params = self.model.named_parameters() if named else self.model.parameters()
        self.optimizer = LUMA(params, seed=7, lr=1e-2, **{"min_compress_elements": 8, **options})
        for step in range(steps):
            self.step(step)

    def step(self, index: int) -> None:
        x = torch.randn(16, 48, generator=torch.Generator().manual_seed(index))
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Every tensor of state and weights, copied."""
        found = {f"w/{k}": v.detach().clone() for k, v in self.model.state_dict().items()}
        for state in self.optimizer.parameter_states():
            found[f"s/{state.name}"] = torch.tensor([state.step, state.noise_key, state.nonfinite])
            found |= {f"s/{state.name}/{key}": v.clone() for key, v in state.fields.items()}
        return found


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="session")
def new_run() -> type[Run]:
    return Run


@pytest.fixture(scope="session")
def same() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]:
    return equal


@pytest.fixture(scope="session")
def edit_manifest() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Change a manifest and mend its checksum, so that only the fields themselves can tell."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "luma.json"
        body = json.loads(path.read_text())["manifest"]
        change(body)

        def canonical(value: Any) -> bytes:
            return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()

        digest = hashlib.sha256(canonical(body)).hexdigest()
        path.write_bytes(canonical({"checksum": f"sha256:{digest}", "manifest": body}))

    return edit
