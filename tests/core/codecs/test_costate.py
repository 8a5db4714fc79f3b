"""CoState: three tiers that decode to different things, and feedback of what coding lost."""

import pytest
import torch

from luma_core.codecs import CoStateM


def blocks(means: list[float], block_size: int = 128) -> torch.Tensor:
    """One row of blocks with the given mean magnitudes and random signs."""
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(len(means), block_size, generator=generator) + 0.5
    x *= torch.tensor(means).unsqueeze(1) / x.mean(dim=1, keepdim=True)
    return (x * torch.randint(0, 2, x.shape, generator=generator).mul(2).sub(1)).view(1, -1)


def test_null_phase_and_amplitude_decode_to_zero_a_shared_and_an_own_magnitude() -> None:
    x = blocks([3.0, 0.1, 9.0, 2.0, 4.0, 3.0, 2.5, 3.5, 2.0, 4.0])
    decoded = CoStateM().decode_tensor(CoStateM().encode_tensor(x), x.shape)
    size = decoded.abs().view(10, 128)
    assert torch.equal(size, size[:, :1].expand_as(size))
    assert float(size[1, 0]) == 0.0
    assert float(size[2, 0]) == pytest.approx(9.0, rel=2**-8)
    phase = [float(size[i, 0]) for i in (0, 3, 4, 5, 6, 7, 8, 9)]
    assert phase == pytest.approx([3.0] * 8, rel=2**-8)
    assert len(set(phase)) == 1
    kept = decoded != 0
    assert torch.equal(decoded[kept].sign(), x[kept].sign())


@pytest.mark.parametrize(
    ("n", "null", "amplitude"), [(1, 0, 0), (4, 0, 0), (5, 1, 1), (6, 1, 1), (24, 2, 2), (64, 6, 6)]
)
def test_percentiles_are_rounded_shares_of_a_rows_blocks(n: int, null: int, amplitude: int) -> None:
    x = blocks([1.0 + i for i in range(n)])
    scale = CoStateM().encode_tensor(x)["scale"].float()[0]
    assert int((scale == 0).sum()) == null
    values, counts = scale.unique(return_counts=True)
    assert int((values != 0).sum()) == amplitude + 1
    assert int(counts.max()) == n - null - amplitude


def test_percentiles_are_options() -> None:
    x = blocks([float(i + 1) for i in range(8)])
    own = CoStateM(null_pct=0.0, amp_pct=0.0).encode_tensor(x)["scale"].float()
    assert own[0].tolist() == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8], rel=2**-8)
    assert not CoStateM(null_pct=1.0, amp_pct=1.0).encode_tensor(x)["scale"].any()
    one = CoStateM(null_pct=0.0, amp_pct=1.0).encode_tensor(x)["scale"].float()
    assert one[0].tolist() == pytest.approx([4.5] * 8, rel=2**-8)


def test_each_row_has_its_own_tiers() -> None:
    x = torch.cat([blocks([1.0, 2.0, 3.0, 4.0, 5.0]), blocks([50.0, 40.0, 30.0, 20.0, 10.0])])
    scale = CoStateM().encode_tensor(x)["scale"].float()
    assert scale[0].tolist() == pytest.approx([0, 3, 3, 3, 5], rel=2**-7)
    assert scale[1].tolist() == pytest.approx([50, 30, 30, 30, 0], rel=2**-7)


def test_the_padding_of_a_short_last_block_does_not_dilute_its_scale() -> None:
    x = torch.full((1, 128 * 4 + 3), 2.0)
    decoded = CoStateM().decode_tensor(CoStateM().encode_tensor(x), x.shape)
    assert torch.equal(decoded, x)


def run(feedback: float, steps: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run an average with decay 0.9: the moment before coding, the exact one, and what is kept."""
    generator = torch.Generator().manual_seed(0)
    codec = CoStateM(feedback=feedback)
    drift = 0.2 * torch.randn(1, 32, 128, generator=generator)
    fields = {k: f.view(1, 32, -1) for k, f in codec.init((1, 32 * 128), "cpu").items()}
    exact = torch.zeros(1, 32, 128)
    for _ in range(steps):
        grad = drift + torch.randn(1, 32, 128, generator=generator)
        exact = exact.lerp(grad, 0.1)
        new = codec.decode(fields).lerp(grad, 0.1)
        fitted = codec.refit(new, fields)
        fields = {**fitted, **codec.encode(new, fitted, None)}
    kept = codec.decode(fields) + fields.get("error", torch.zeros(1))
    return new, exact, kept


def test_feedback_with_the_decay_keeps_the_exact_average() -> None:
    new, exact, kept = run(0.9)
    torch.testing.assert_close(kept, exact, rtol=0.0, atol=0.02)
    plain, truth, _ = run(0.0)
    assert torch.equal(truth, exact)
    assert float((new - exact).square().mean()) < 0.7 * float((plain - exact).square().mean())


def test_the_error_is_what_coding_lost_and_takes_no_part_in_decoding() -> None:
    codec, x = CoStateM(feedback=0.9), blocks([1.0, 2.0, 3.0, 4.0, 5.0])
    fields = codec.encode_tensor(x)
    decoded = codec.decode_tensor(fields, x.shape)
    assert torch.equal(fields["error"], (x - decoded).to(torch.bfloat16))
    assert torch.equal(decoded, CoStateM().decode_tensor(CoStateM().encode_tensor(x), x.shape))
