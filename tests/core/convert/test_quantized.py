"""State of other libraries' 8-bit and 4-bit optimizers, read into ours and AdamW's."""

import re

import pytest
import torch
from torch import nn

from luma_core import LUMA, Lion, checkpoint, convert
from luma_core.errors import ConversionError

# Their own warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 96))


def train(model, optimizer, steps=2):
    for step in range(steps):
        x = torch.randn(4, 96, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def check_goes_on(tmp_path, model):
    """Go on from ``a.pt`` in LUMA and in torch's AdamW."""
    convert.convert(tmp_path / "a.pt", tmp_path / "c", to="luma")
    luma = LUMA(model.parameters())
    checkpoint.load(tmp_path / "c", optimizer=luma)
    train(model, luma, 1)
    convert.convert(tmp_path / "a.pt", tmp_path / "b.pt", to="adamw")
    adamw = torch.optim.AdamW(model.parameters())
    adamw.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True))
    train(model, adamw, 1)
    assert {float(state["step"]) for state in adamw.state.values()} == {3.0}
    assert adamw.param_groups[0]["lr"] == luma.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_torchao(tmp_path, kind):
    optim = pytest.importorskip("torchao.optim")
    model = make_model()
    optimizer = getattr(optim, kind)(model.parameters(), lr=0.01)
    with torch.compiler.set_stance("force_eager"):
        train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    source = convert.open_source(tmp_path / "a.pt")
    assert source.format == "torchao"
    for index, param in enumerate(model.parameters()):
        found = source.read(f"param.{index}")
        assert found.info.step == 2
        for moment in ("exp_avg", "exp_avg_sq"):
            want = optimizer.state[param][moment]
            coded = hasattr(want, "dequantize") and type(want) is not torch.Tensor
            assert coded == (param.dim() == 2)
            assert torch.equal(getattr(found, moment), want.dequantize() if coded else want)
    assert float(source.read("param.0").exp_avg.abs().max()) > 0
    check_goes_on(tmp_path, model)


def trained_bitsandbytes(kind="AdamW8bit"):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = make_model()
    optimizer = getattr(bitsandbytes.optim, kind)(model.parameters(), lr=0.01)
    train(model, optimizer)
    return model, optimizer


@pytest.mark.parametrize("kind", ["Lion8bit", "Lion32bit"])
def test_bitsandbytes_with_one_moment_goes_on_as_lion(tmp_path, kind):
    functional = pytest.importorskip("bitsandbytes.functional")
    model, optimizer = trained_bitsandbytes(kind)
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    convert.convert(tmp_path / "a.pt", tmp_path / "c", to="luma", codec="fp32")
    own = Lion(model.named_parameters(), codec="fp32", betas=(0.5, 0.75))
    checkpoint.load(tmp_path / "c", optimizer=own)
    for param, found in zip(model.parameters(), own.parameter_states(), strict=True):
        state = optimizer.state[param]
        want = state["state1"]
        if want.dtype == torch.uint8:
            scales, table = state["absmax1"], state["qmap1"]
            want = functional.dequantize_blockwise(want, absmax=scales, code=table, blocksize=256)
        assert found.step == 2
        assert torch.allclose(found.decode("exp_avg"), want, rtol=1e-6, atol=0)
    assert tuple(own.param_groups[0]["betas"]) == (0.9, 0.99)


def test_flashoptim_with_one_moment_is_read(tmp_path):
    codes = torch.arange(-48, 48, dtype=torch.int8).view(3, 32)
    scales = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float16)
    entry = {"step": 7, "exp_avg::quantized": codes, "exp_avg::scales": scales}
    group = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1, "params": [0]}
    torch.save({"state": {0: entry}, "param_groups": [group]}, tmp_path / "a.pt")
    source = convert.open_source(tmp_path / "a.pt")
    assert (source.format, source.algorithm) == ("flashoptim", "lion")
    y = codes.float() / 127
    want = y / (2 - y.abs()) * scales.float()[:, None]
    assert torch.allclose(source.read("param.0").moments["exp_avg"], want)


def test_one_moment_beside_eps_is_refused(tmp_path):
    state = {"state": {}, "param_groups": []}
    codes = torch.zeros(1, 32, dtype=torch.int8)
    scales = torch.ones(1, dtype=torch.float16)
    state["state"][0] = {"step": 1, "exp_avg::quantized": codes, "exp_avg::scales": scales}
    state["param_groups"].append(
        {"lr": 1e-4, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "params": [0]}
    )
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match="has eps=1e-08, and its parameters have the moments"):
        convert.open_source(tmp_path / "a.pt")


@pytest.mark.parametrize("nested", [True, False])
def test_bitsandbytes(tmp_path, nested):
    """Nested as versions from 0.47 keep it, and on one level as those before."""
    functional = pytest.importorskip("bitsandbytes.functional")
    model, optimizer = trained_bitsandbytes()
    content = optimizer.state_dict()
    nest = "__bnb_optimizer_quant_state__"
    assert nest in content["state"][0]
    if not nested:
        content["state"] = {
            key: {**{k: v for k, v in entry.items() if k != nest}, **entry.get(nest, {})}
            for key, entry in content["state"].items()
        }
    torch.save(content, tmp_path / "a.pt")
    source = convert.open_source(tmp_path / "a.pt")
    assert source.format == "bitsandbytes"
    for index, param in enumerate(model.parameters()):
        state = optimizer.state[param]
        found = source.read(f"param.{index}")
        assert found.info.step == 2
        for which, got in ((1, found.exp_avg), (2, found.exp_avg_sq)):
            want = state[f"state{which}"]
            if want.dtype == torch.uint8:
                want = functional.dequantize_blockwise(
                    want,
                    absmax=state[f"absmax{which}"],
                    code=state[f"qmap{which}"],
                    blocksize=256,
                )
            assert torch.allclose(got, want, rtol=1e-6, atol=0)
    check_goes_on(tmp_path, model)
    assert torch.load(tmp_path / "b.pt", weights_only=True)["param_groups"][0]["alpha"] == 0.0


def test_bitsandbytes_in_float32(tmp_path):
    model, optimizer = trained_bitsandbytes("AdamW32bit")
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    found = convert.open_source(tmp_path / "a.pt").read("param.0")
    assert torch.equal(found.exp_avg, optimizer.state[model[0].weight]["state1"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("state2"), "some parameters have exp_avg, others exp_avg and exp_avg_sq"),
        (lambda s: s.pop("qmap1"), "has no qmap1 of 256 values"),
        (lambda s: s.pop("absmax2"), "has no absmax2 of one value per block"),
        (lambda s: s.update(absmax1=torch.ones(5)), "5 scales for 6144 codes"),
        (lambda s: s.update(state1=torch.ones(3)), "exp_avg has shape [3], exp_avg_sq [64, 96]"),
        (lambda s: s.update(state1="x"), "exp_avg is str"),
    ],
)
def test_bitsandbytes_that_is_not_whole_is_refused(tmp_path, change, said):
    _, optimizer = trained_bitsandbytes()
    content = optimizer.state_dict()
    change(content["state"][0]["__bnb_optimizer_quant_state__"])
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match=re.escape(said)):
        convert.open_source(tmp_path / "a.pt")


def flash_codes(x, moment):
    """Code ``x`` as FlashOptim's ``quantize`` does: the layout of its state, made in the test."""
    groups = nn.functional.pad(x.reshape(-1), (0, -x.numel() % 32)).view(-1, 32)
    groups = groups if moment == "exp_avg" else groups.sqrt()
    scales = groups.abs().amax(1).half()
    y = groups / scales.float()[:, None].clamp_min(1e-30)
    y, top, dtype = (
        (2 * y / (1 + y.abs()), 127, torch.int8) if moment == "exp_avg" else (y, 255, torch.uint8)
    )
    codes = (y * top).round().clamp(-top, top).to(dtype)
    return codes.reshape(-1)[: x.numel()].view(x.shape), scales


def flash_state(dtype=torch.float32):
    model = make_model()
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, adamw)
    content = adamw.state_dict()
    want = {key: dict(entry) for key, entry in content["state"].items()}
    for key, entry in content["state"].items():
        coded = {"step": entry["step"], "error_bits": torch.zeros_like(entry["exp_avg"])}
        for moment in ("exp_avg", "exp_avg_sq"):
            codes, scales = flash_codes(entry[moment] * 1e4, moment)
            coded[f"{moment}::quantized"] = codes
            coded[f"{moment}::scales"] = scales if dtype == torch.float32 else scales.view(dtype)
        content["state"][key] = coded
    return model, content, want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flashoptim(tmp_path, dtype):
    """FlashOptim needs a CUDA device, so its layout is made here by its own formulas."""
    model, content, want = flash_state(dtype)
    torch.save(content, tmp_path / "a.pt")
    source = convert.open_source(tmp_path / "a.pt")
    assert source.format == "flashoptim"
    for key, entry in want.items():
        found = source.read(f"param.{key}")
        for moment, bound in (("exp_avg", 0.02), ("exp_avg_sq", 0.02)):
            x = entry[moment] * 1e4
            assert float((getattr(found, moment) - x).norm() / x.norm()) < bound
    check_goes_on(tmp_path, model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("step"), "has no 'step'"),
        (lambda s: s.pop("exp_avg::scales"), "has no exp_avg::scales, 192 values"),
        (
            lambda s: s.pop("exp_avg_sq::quantized"),
            "some parameters have exp_avg, others exp_avg and exp_avg_sq",
        ),
        (lambda s: s.update({"exp_avg::scales": torch.ones(3).half()}), "192 values of 16 bits"),
    ],
)
def test_flashoptim_that_is_not_whole_is_refused(tmp_path, change, said):
    _, content, _ = flash_state()
    change(content["state"][0])
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match=re.escape(said)):
        convert.open_source(tmp_path / "a.pt")
