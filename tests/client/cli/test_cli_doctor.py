"""``luma doctor`` says what is here and which backend takes a step, and why another does not."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_client.cli.app import run
from luma_client.console import offload_advice
from luma_core import AdamW
from luma_core.backends import native
from luma_kernels import cpu
from luma_kernels.cpu import library
from luma_kernels.cpu.library import native_library


def doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = run(["doctor", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


def test_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = doctor(capsys)
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert found["cpu"]["architecture"] == platform.machine()
    assert found["cpu"]["cores"] >= 1
    assert {(entry["device"], entry["block_size"]) for entry in found["backends"]} == {
        (device, block) for device in ("cpu", "cuda") for block in (128, None)
    }
    assert all(entry["reason"] for entry in found["backends"])


def test_without_a_device_state_lies_beside_the_parameters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    _, found = doctor(capsys)
    assert found["offload"]["devices"] == []
    assert found["offload"]["cpu_elements_per_second"] is None
    assert found["offload"]["host_bytes"] > 0
    run(["doctor"])
    assert "state lies beside the parameters" in " ".join(capsys.readouterr().out.split())


def test_the_link_to_each_device_and_what_auto_makes_of_it() -> None:
    device = {
        "device": "cuda:1",
        "free_bytes": 40 * 10**9,
        "to_device_bytes_per_second": 50e9,
        "to_host_bytes_per_second": 40e9,
        "both_bytes_per_second": 30e9,
    }
    text = "\n".join(
        offload_advice.lines(
            {"host_bytes": 100 * 10**9, "cpu_elements_per_second": 2e9, "devices": [device]}
        )
    )
    for part in ("cuda:1: 50", "40", "30", "up to 10", "2.00e9 elements", "gives 80"):
        assert part in text


@pytest.mark.gpu
def test_the_link_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = doctor(capsys)
    assert len(found["offload"]["devices"]) == len(found["cuda"]) > 0
    for device in found["offload"]["devices"]:
        rates = [device[f"{way}_bytes_per_second"] for way in ("to_device", "to_host", "both")]
        assert all(1e8 < rate < 1e12 for rate in rates)
    assert 1e6 < found["offload"]["cpu_elements_per_second"] < 1e12


@pytest.mark.skipif(not cpu.native_status().available, reason="needs the native library")
def test_with_the_native_library(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor(capsys)
    assert (code, found["ok"]) == (0, True)
    assert found["native"]["available"]
    assert Path(found["native"]["path"]).exists()
    assert found["cpu"]["instruction_sets"] == list(native_library().instruction_sets)
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"{native_library().instruction_sets[-1]} in use" in text
    assert "luma16_m, luma16_v" in text


def test_without_the_native_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "LIBRARY_PATH", tmp_path / "_native.so")
    native_library.cache_clear()
    native.native_cpu.cache_clear()
    try:
        code, found = doctor(capsys)
        assert (code, found["ok"]) == (1, False)
        assert "was not built" in found["native"]["reason"]
        on_cpu = [entry for entry in found["backends"] if entry["device"] == "cpu"]
        assert {entry["backend"] for entry in on_cpu} == {"pytorch"}
        assert run(["doctor"]) == 1
        assert "not available: the native CPU library" in capsys.readouterr().out
        assert run(["doctor", "-q"]) == 1
        assert capsys.readouterr().out == "not native\n"
    finally:
        native_library.cache_clear()
        native.native_cpu.cache_clear()


def test_what_codec_takes_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = doctor(capsys)
    page = (Path(__file__).parents[3] / "docs/optimizers.md").read_text()
    for preset, codecs in found["codecs"]["presets"].items():
        optimizer = AdamW([nn.Parameter(torch.zeros(2, 2))], codec=preset)
        names = [config["name"] for config in optimizer.param_groups[0]["codecs"].values()]
        assert names == list(codecs.values())
        assert f'| `"{preset}"` |' in page
    for moment, kind in (("exp_avg", "signed"), ("exp_avg_sq", "square")):
        listed = ", ".join(f"`{name}`" for name in found["codecs"][kind])
        assert f"| `{moment}` | {listed} |" in page
