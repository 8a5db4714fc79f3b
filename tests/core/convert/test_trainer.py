"""Folders that transformers' Trainer and Accelerate write, and go on from."""

import pytest
import torch
from torch import nn

from luma_core import checkpoint, convert
from luma_core.errors import CheckpointNotFoundError, ConversionError

# Their own warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def make_trainer(folder, steps):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        vocab_size=50,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    tokens = [{"input_ids": [(i + j) % 50 for j in range(16)]} for i in range(40)]
    data = [{**item, "labels": item["input_ids"]} for item in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=2,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        weight_decay=0.1,
        learning_rate=1e-3,
        optim="adamw_torch",
    )
    model = transformers.GPT2LMHeadModel(config)
    return transformers.Trainer(model=model, args=arguments, train_dataset=data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    trainer = make_trainer(folder, 2)
    trainer.train()
    return trainer, folder / "checkpoint-2"


def expected(trainer):
    """Return the moments by the names that the model gives its parameters."""
    state = trainer.optimizer.state
    return {name: state[param] for name, param in trainer.model.named_parameters()}


def test_names_come_from_the_model_beside_the_state(trained):
    trainer, folder = trained
    source = convert.open_source(folder)
    assert (source.format, source.named) == ("trainer", True)
    want = expected(trainer)
    assert {info.name for info in source.parameters()} == set(want)
    for name, state in want.items():
        assert torch.equal(source.read(name).exp_avg, state["exp_avg"])
    decayed = {info.name for info in source.parameters() if info.group == 0}
    assert decayed == {name for name in want if "weight" in name and "ln_" not in name}
    assert [group["weight_decay"] for group in source.groups()] == [0.1, 0.0]


def test_training_goes_on_from_the_converted_state(tmp_path, trained):
    _, folder = trained
    convert.convert(folder, tmp_path / "c", to="luma")
    assert "transformer.h.1.attn.c_attn.weight" in checkpoint.open(tmp_path / "c").parameter_names()
    target = folder / "optimizer.pt"
    before = torch.load(target, weights_only=True)
    convert.convert(tmp_path / "c", target, to="adamw", overwrite=True)
    trainer = make_trainer(folder.parent, 3)
    trainer.train(resume_from_checkpoint=str(folder))
    assert {float(state["step"]) for state in trainer.optimizer.state.values()} == {3.0}
    groups = torch.load(target, weights_only=True)["param_groups"]
    assert [group["initial_lr"] for group in groups] == [1e-3, 1e-3]
    torch.save(before, target)


def test_the_model_can_be_given_and_must_fit(tmp_path, trained):
    trainer, folder = trained
    (tmp_path / "state.pt").write_bytes((folder / "optimizer.pt").read_bytes())
    assert not convert.open_source(tmp_path / "state.pt").named
    by_folder = convert.open_source(tmp_path / "state.pt", model=folder)
    torch.save(dict(trainer.model.named_parameters()), tmp_path / "model.pt")
    by_order = convert.open_source(tmp_path / "state.pt", model=tmp_path / "model.pt")
    assert by_folder.parameters() == by_order.parameters()
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ConversionError, match="cannot be told from shapes"):
        convert.open_source(tmp_path / "state.pt", model=alone)
    torch.save({"w": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match="has 0 parameters of shape"):
        convert.open_source(tmp_path / "state.pt", model=tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="no model here"):
        convert.open_source(tmp_path / "state.pt", model=tmp_path / "empty")


def test_a_checkpoint_saved_without_names_gets_them(tmp_path, trained):
    _, folder = trained
    (tmp_path / "state.pt").write_bytes((folder / "optimizer.pt").read_bytes())
    convert.convert(tmp_path / "state.pt", tmp_path / "c", to="luma", codec="fp32")
    assert not convert.open_source(tmp_path / "c").named
    source = convert.open_source(tmp_path / "c", model=folder)
    want = convert.open_source(folder)
    assert [info.name for info in source.parameters()] == [info.name for info in want.parameters()]
    name = "transformer.h.0.ln_1.weight"
    assert torch.equal(source.read(name).exp_avg, want.read(name).exp_avg)


def test_an_accelerate_folder_is_read_and_goes_on(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 4))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(model(torch.randn(3, 40)).square().sum())
    optimizer.step()
    accelerator.save_state(str(tmp_path / "run"))
    source = convert.open_source(tmp_path / "run")
    assert (source.format, source.named) == ("accelerate", True)
    assert torch.equal(source.read("0.bias").exp_avg, optimizer.state[model[0].bias]["exp_avg"])
    convert.convert(tmp_path / "run", tmp_path / "c", to="luma", codec="fp32")
    target = tmp_path / "run" / "optimizer.bin"
    original = target.read_bytes()
    convert.convert(tmp_path / "c", target, to="adamw", overwrite=True)
    want = optimizer.state[model[1].weight]["exp_avg"].clone()
    optimizer.state[model[1].weight]["exp_avg"].zero_()
    weights = []
    for _ in range(2):
        accelerator.load_state(str(tmp_path / "run"))
        assert torch.equal(optimizer.state[model[1].weight]["exp_avg"], want)
        optimizer.zero_grad()
        accelerator.backward(model(torch.ones(3, 40)).square().sum())
        optimizer.step()
        weights.append([param.detach().clone() for param in model.parameters()])
        target.write_bytes(original)
    for mine, theirs in zip(*weights, strict=True):
        assert torch.equal(mine, theirs)
    assert float(optimizer.state[model[1].weight]["step"]) == 2
    (tmp_path / "run" / "optimizer_1.bin").write_bytes(b"")
    with pytest.raises(ConversionError, match="more than one optimizer"):
        convert.open_source(tmp_path / "run")


def test_a_folder_without_a_model_is_counted_and_says_so(tmp_path, trained, caplog):
    (tmp_path / "optimizer.pt").write_bytes((trained[1] / "optimizer.pt").read_bytes())
    source = convert.open_source(tmp_path)
    assert not source.named
    assert source.parameters()[0].name == "param.0"
    assert "counted and not named" in caplog.text
