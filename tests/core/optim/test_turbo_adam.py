"""TurboAdam: what its options choose, how small its state is, and that it steps like AdamW."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.state_quality import gpt2_bits
from luma_core import TurboAdam
from luma_core.codecs import parameter_codecs
from luma_core.codecs.packed import BITS
from luma_core.errors import BackendUnavailableError, ConfigurationError
from luma_core.optim import turbo_codecs
from luma_core.optim.presets import TURBO_PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., nn.Module]
Train = Callable[..., float]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"preset": "8bit"},
    {"v_bits": 4, "v_floor": None},
    {"m_codec": "costate"},
    {"m_codec": "costate", "error_feedback": True},
    {"compress_m": False},
    {"compress_v": False},
]


def codecs_of(optimizer: TurboAdam) -> dict[str, dict[str, Any]]:
    codecs: dict[str, dict[str, Any]] = optimizer.param_groups[0]["codecs"]
    return codecs


def matrix(**options: Any) -> tuple[nn.Parameter, TurboAdam]:
    param = nn.Parameter(torch.zeros(64, 256))
    return param, TurboAdam([("w", param)], seed=0, **options)


@pytest.mark.parametrize(("options", "most"), [({}, 6.6), ({"preset": "8bit"}, 8.75)])
def test_the_state_of_gpt2_is_as_small_as_promised(options: dict[str, Any], most: float) -> None:
    assert gpt2_bits(options) <= most


def test_the_counted_state_is_that_of_real_tensors() -> None:
    param = nn.Parameter(torch.zeros(512, 768))
    optimizer = TurboAdam([("w", param)], seed=0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    nbytes = sum(tensor.nbytes for tensor in optimizer.state[param].values())
    # 3 + 2 bits, a bfloat16 for each of two blocks of 128, and 24 bytes for the tensor.
    assert nbytes == 512 * 768 * (5 + 2 * 16 / 128) / 8 + 24


def test_presets_and_options_choose_codecs() -> None:
    assert set(TURBO_PRESETS) == {"5bit", "8bit", "16bit"}
    names = {
        str(options): [(c["name"], c.get("bits")) for c in turbo_codecs(**options).values()]
        for options in (
            {},
            {"preset": "8bit"},
            {"m_bits": 4, "v_bits": 6},
            {"v_floor": None},
            {"m_codec": "costate"},
            {"compress_m": False, "compress_v": False},
        )
    }
    assert list(names.values()) == [
        [("table_m", 3), ("root_v", 2)],
        [("table_m", 3), ("log_v", 5)],
        [("table_m", 4), ("root_v", 6)],
        [("table_m", 3), ("log_v", 2)],
        [("costate_m", 1), ("root_v", 2)],
        [("fp32", None), ("fp32", None)],
    ]
    _, optimizer = matrix(preset="8bit", block_size=64, m_codec="costate", null_pct=0.2)
    assert codecs_of(optimizer) == turbo_codecs(
        preset="8bit", block_size=64, m_codec="costate", null_pct=0.2
    )


def test_small_tensors_keep_their_first_moment_in_float32_where_asked() -> None:
    params = [(str(n), nn.Parameter(torch.zeros(n, 64))) for n in (63, 64)]
    optimizer = TurboAdam(params, min_m_compress_elements=4096)
    group = optimizer.param_groups[0]
    names = [parameter_codecs(group, n, p.shape)["exp_avg"].name for n, p in params]
    assert names == ["fp32", "table_m"]
    assert parameter_codecs(group, "63", (63, 64))["exp_avg_sq"].name == "root_v"


def test_a_group_sets_options_for_itself_and_keeps_only_its_codecs() -> None:
    a, b, c = (nn.Parameter(torch.zeros(64, 256)) for _ in range(3))
    optimizer = TurboAdam(
        [
            {"params": [a]},
            {"params": [b], "preset": "8bit", "m_bits": 4, "block_size": 64},
            {
                "params": [c],
                "m_codec": "costate",
                "m_bits": None,
                "error_feedback": True,
                "betas": (0.8, 0.99),
            },
        ],
        m_bits=5,
    )
    found = [group["codecs"] for group in optimizer.param_groups]
    assert found == [
        turbo_codecs(m_bits=5),
        turbo_codecs(preset="8bit", m_bits=4, block_size=64),
        turbo_codecs(m_codec="costate", feedback=0.8),
    ]
    keys = [set(group) for group in optimizer.param_groups]
    assert keys[0] == keys[1] == keys[2]
    assert not keys[0] & set(TurboAdam.codec_options)


def test_error_feedback_takes_the_groups_decay() -> None:
    _, optimizer = matrix(m_codec="costate", error_feedback=True, betas=(0.8, 0.99))
    assert codecs_of(optimizer)["exp_avg"]["feedback"] == 0.8


def test_codecs_may_be_given_outright() -> None:
    given = turbo_codecs(preset="8bit", m_bits=6)
    _, optimizer = matrix(codecs=given)
    assert codecs_of(optimizer) == given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "4bit"}, "preset='4bit' must be one of '5bit', '8bit'"),
        ({"m_codec": "zip"}, "m_codec='zip' must be 'table' or 'costate'"),
        ({"m_codec": "costate", "m_bits": 3}, "m_bits=3 has no meaning with m_codec='costate'"),
        ({"error_feedback": True}, "error_feedback=True needs m_codec='costate'"),
        ({"error_feedback": 1}, "error_feedback=1 must be True or False"),
        ({"m_codec": "costate", "null_pct": 0.5, "amp_pct": 0.4}, "amp_pct=0.4 of codec costate_m"),
        ({"m_bits": 7}, "bits=7 of codec table_m must be one of 2, 3, 4, 5, 6, 8"),
        ({"v_bits": 9}, "bits=9 of codec root_v must be one of"),
        ({"v_floor": 1.5}, "floor=1.5 of codec root_v must be from 2**-10 to below 1"),
        ({"v_floor": 0.0}, "floor=0.0 of codec root_v must be from 2**-10 to below 1"),
        ({"v_floor": "none"}, "floor='none' of codec root_v"),
        ({"block_size": 100}, "block_size=100 of codec table_m must be a multiple of 8"),
        ({"block_size": None}, "block_size=None of codec table_m must be a multiple of 8"),
        ({"min_m_compress_elements": -1}, "min_elements=-1 of codec table_m must be an integer"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_clear_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        matrix(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_training_works_with_every_setting(
    make_model: Make, train: Train, options: dict[str, Any]
) -> None:
    losses = {}
    for kind in ("turbo", "adamw"):
        model = make_model()
        params = list(model.named_parameters())
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, lr=3e-3)
        if kind == "turbo":
            optimizer = TurboAdam(params, lr=3e-3, seed=1, min_m_compress_elements=0, **options)
        first = train(model, optimizer, 1)
        losses[kind] = train(model, optimizer, 30, start=1)
        assert losses[kind] < first
    progress = (first - losses["turbo"]) / (first - losses["adamw"])
    assert progress > (0.4 if options.get("m_codec") == "costate" else 0.8)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_step_is_adamws_from_what_is_stored_and_the_new_gradient(
    options: dict[str, Any],
) -> None:
    param, optimizer = matrix(lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), **options)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        state = optimizer.parameter_states()[0] if step > 1 else None
        m, v = (
            torch.zeros(64, 256) if state is None else state.decode(moment).clone()
            for moment in ("exp_avg", "exp_avg_sq")
        )
        before = param.detach().clone()
        param.grad = torch.randn(64, 256, generator=generator)
        optimizer.step()
        m = 0.8 * m + 0.2 * param.grad
        v = 0.9 * v + 0.1 * param.grad**2
        update = m / (1 - 0.8**step) / ((v / (1 - 0.9**step)).sqrt() + 1e-8)
        want = before * (1 - 0.01 * 0.1) - 0.01 * update
        torch.testing.assert_close(param.detach(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"preset": "8bit"}, {"m_codec": "costate", "error_feedback": True}], ids=str
)
def test_a_block_with_a_bad_gradient_is_left_as_it_was(options: dict[str, Any]) -> None:
    param, optimizer = matrix(**options)
    param.grad = torch.randn(64, 256)
    optimizer.step()
    kept = param.detach().clone()
    before = {k: t.clone() for k, t in optimizer.parameter_states()[0].fields.items()}
    param.grad = torch.randn(64, 256)
    param.grad[3, 130] = torch.nan
    optimizer.step()
    state = optimizer.parameter_states()[0]
    assert state.nonfinite == 1
    assert torch.equal(param.detach()[3, 128:], kept[3, 128:])
    assert not torch.equal(param.detach()[3, :128], kept[3, :128])
    for key, field in state.fields.items():
        half = field.shape[1] // 2
        assert torch.equal(field[3, half:], before[key][3, half:]), key
    assert torch.isfinite(state.decode("exp_avg")).all()


@pytest.mark.parametrize("bits", BITS)
def test_every_size_of_codes_steps(bits: int) -> None:
    for floor in (0.25, None):
        param, optimizer = matrix(m_bits=bits, v_bits=bits, v_floor=floor, lr=0.1)
        for _ in range(3):
            param.grad = torch.ones_like(param)
            optimizer.step()
        torch.testing.assert_close(param.detach(), torch.full((64, 256), -0.3), rtol=0.15, atol=0)


def test_a_native_step_that_was_asked_for_is_refused_by_name() -> None:
    param, optimizer = matrix(backend="native", m_codec="costate")
    param.grad = torch.ones_like(param)
    with pytest.raises(BackendUnavailableError, match="native"):
        optimizer.step()
