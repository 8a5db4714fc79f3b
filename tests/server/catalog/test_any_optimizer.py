"""Checkpoints of PyTorch's optimizers are listed like any other."""

import torch

from luma_core import checkpoint
from luma_core.checkpoint.format import MANIFEST_NAME
from luma_server.catalog.summary import quick_summary, summary_of


def test_a_manifest_with_state_as_it_is_has_a_summary(tmp_path):
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.RMSprop(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    manifest = checkpoint.save(tmp_path, optimizer=optimizer)
    found = quick_summary("run", "1", (tmp_path / MANIFEST_NAME).read_bytes())
    assert found is not None
    assert found == summary_of("run", "1", manifest)
    assert found.info.algorithm == "torch.RMSprop"
