"""Lion: the rule itself, and its one moment in every codec through steps and saved state."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import luma_core
from luma_core import LUMA, Lion, checkpoint, convert
from luma_core.errors import ConfigurationError, ConversionError, LumaError

ROOMS = ("luma_core", "kernels/luma_kernels", "client/luma_client", "server/luma_server")
SHAPES = ((40, 130), (7,))


def params(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"p{i}": nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for i, shape in enumerate(SHAPES)
    }


def steps(found: dict[str, nn.Parameter], optimizer: Lion, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        for name, param in found.items():
            generator = torch.Generator().manual_seed(100 * step + len(name) + param.dim())
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def build(found: dict[str, nn.Parameter], **options: Any) -> Lion:
    return Lion(found.items(), min_compress_elements=0, **options)


def values(found: dict[str, nn.Parameter]) -> Tensor:
    return torch.cat([param.detach().flatten() for param in found.values()])


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("block_size", [128, None])
def test_with_float32_state_it_is_lion_bit_for_bit(block_size: int | None, maximize: bool) -> None:
    found = params()
    expected = {name: param.detach().clone() for name, param in found.items()}
    moments = {name: torch.zeros_like(param) for name, param in expected.items()}
    optimizer = build(
        found, lr=1e-3, weight_decay=0.1, codec="fp32", block_size=block_size, maximize=maximize
    )
    for step in range(4):
        steps(found, optimizer, 1, step)
        for name, p in expected.items():
            grad = found[name].grad
            assert grad is not None
            grad = -grad if maximize else grad
            sign = torch.sign(moments[name].lerp(grad, 1.0 - 0.9))
            p.mul_(1.0 - 1e-3 * 0.1).sub_(sign * 1e-3)
            moments[name].lerp_(grad, 1.0 - 0.99)
    for name, param in found.items():
        assert torch.equal(param, expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codec", ["luma16", "bf16", "fp32"])
def test_a_saved_run_goes_on_with_the_same_bits(
    tmp_path: Path, codec: str, dtype: torch.dtype
) -> None:
    found = params(dtype)
    optimizer = build(found, codec=codec)
    steps(found, optimizer, 3)
    others = [copy.deepcopy(found), copy.deepcopy(found)]
    by_dict, by_file = (build(other, codec=codec) for other in others)
    by_dict.load_state_dict(optimizer.state_dict())
    checkpoint.save(tmp_path / "state.luma", optimizer=optimizer)
    checkpoint.load(tmp_path / "state.luma", optimizer=by_file)
    for params_, one in ((found, optimizer), (others[0], by_dict), (others[1], by_file)):
        steps(params_, one, 3, 3)
    for other in others:
        assert torch.equal(values(found), values(other))


def test_codecs_without_signs_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="its values have both signs"):
        build(params(), codec={"exp_avg": {"name": "luma16_v", "block_size": 128}})


def test_state_of_two_moments_is_refused() -> None:
    found = params()
    adamw = LUMA(found.items(), min_compress_elements=0)
    with pytest.raises(LumaError):
        build(found).load_state_dict(adamw.state_dict())


def test_nothing_but_its_own_files_tables_and_exports_names_it() -> None:
    root = Path(luma_core.__file__).parents[1]
    sources = [path for room in ROOMS for path in (root / room).rglob("*") if path.is_file()]
    naming = {
        str(path.relative_to(root))
        for path in sources
        if path.suffix in (".py", ".h", ".cpp")
        and re.search(r"(?<![a-z])k?lion", path.read_text(), re.IGNORECASE)
    }
    exports = {"luma_core/__init__.py", "luma_core/optim/__init__.py"}
    assert naming - exports == {
        "luma_core/catalog.py",
        "luma_core/optim/lion.py",
        "luma_core/rules/lion.py",
        "kernels/luma_kernels/cpu/rules.py",
        "kernels/luma_kernels/cpu/src/instances.h",
        "kernels/luma_kernels/cpu/src/lion.h",
        # The rule's number, and the one include.
        "kernels/luma_kernels/cpu/src/native.h",
        "kernels/luma_kernels/cpu/src/stepping.h",
        "kernels/luma_kernels/triton/fused/registry.py",
        "kernels/luma_kernels/triton/rules/lion.py",
    }


def test_converting_it_to_adamw_is_refused(tmp_path: Path) -> None:
    found = params()
    optimizer = build(found)
    steps(found, optimizer, 1)
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    with pytest.raises(ConversionError, match="holds AdamW's exp_avg and exp_avg_sq"):
        convert.convert(tmp_path / "c", tmp_path / "a.pt", to="adamw")
    assert not (tmp_path / "a.pt").exists()
