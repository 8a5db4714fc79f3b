"""Lightning's .ckpt files: read, and written as a copy that Lightning goes on from."""

import pytest
import torch
from torch import nn

from luma_core import convert
from luma_core.errors import ConfigurationError, ConversionError

# Lightning's own warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning")


def make_module(lightning):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 8), nn.Linear(8, 8))

        def training_step(self, batch, index):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return Module()


def fit(lightning, folder, steps, resume=None):
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = make_module(lightning)
    data = torch.randn(8, 4, 40, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(list(data), batch_size=None)
    trainer.fit(module, loader, ckpt_path=resume)
    return trainer, module


def test_state_goes_through_luma_into_a_copy_and_on(tmp_path, lightning):
    trainer, module = fit(lightning, tmp_path, 2)
    original = tmp_path / "a.ckpt"
    trainer.save_checkpoint(original)
    source = convert.open_source(original)
    assert (source.format, source.named) == ("lightning", True)
    state = trainer.optimizers[0].state
    for name, param in module.named_parameters():
        assert torch.equal(source.read(name).exp_avg, state[param]["exp_avg"])
    convert.convert(original, tmp_path / "c", to="luma", codec="fp32")
    copy = tmp_path / "b.ckpt"
    convert.convert(tmp_path / "c", copy, to="lightning", model=original)
    before, after = (torch.load(path, weights_only=True) for path in (original, copy))
    assert before.keys() == after.keys()
    assert before["global_step"] == after["global_step"]
    resumed = [fit(lightning, tmp_path, 4, resume=path)[1] for path in (original, copy)]
    for one, other in zip(*(module.parameters() for module in resumed), strict=True):
        assert torch.equal(one, other)


def test_a_copy_needs_an_original_that_fits(tmp_path, lightning):
    trainer, _ = fit(lightning, tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    param = nn.Parameter(torch.ones(3))
    adamw = torch.optim.AdamW([param])
    param.grad = torch.ones(3)
    adamw.step()
    torch.save(adamw.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConfigurationError, match="needs model="):
        convert.convert(tmp_path / "other.pt", tmp_path / "b.ckpt", to="lightning")
    with pytest.raises(ConversionError, match="other parameters or groups"):
        convert.convert(
            tmp_path / "other.pt", tmp_path / "b.ckpt", to="lightning", model=tmp_path / "a.ckpt"
        )
    with pytest.raises(ConversionError, match="none of Lightning's"):
        convert.convert(
            tmp_path / "other.pt", tmp_path / "b.ckpt", to="lightning", model=tmp_path / "other.pt"
        )
    assert not (tmp_path / "b.ckpt").exists()
