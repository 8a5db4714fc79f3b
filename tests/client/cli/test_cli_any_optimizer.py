"""The command line reads checkpoints of PyTorch's optimizers."""

import json

import torch

from luma_core import checkpoint


def test_what_is_kept_as_it_is_can_be_looked_at(luma, tmp_path):
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    place = tmp_path / "run" / "1"
    checkpoint.save(place, optimizer=optimizer, model=model)
    assert luma("verify", place)[0] == 0
    code, out, _ = luma("inspect", place, "--params")
    assert code == 0
    assert "algorithm torch.Adafactor" in out
    found = json.loads(luma("inspect", place, "--json")[1])
    assert found["float32"]["why"] == "this optimizer's state is kept as it is"
    kept = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert found["state_bytes"] == kept
    code, out, _ = luma("stats", place)
    assert code == 0
    assert "no state yet" not in out
