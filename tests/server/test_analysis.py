"""Statistics by module, over steps and between two checkpoints."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import httpx
import pytest
import torch

from luma_core import checkpoint, stats
from luma_core.stats import HISTOGRAM_BINS, METRICS
from luma_server import create_app


def test_modules_add_up_to_the_total(http) -> None:
    whole = http.get("/v1/checkpoints/gpt/9/stats").json()["total"]
    answer = http.get("/v1/checkpoints/gpt/9/stats/modules").json()
    assert answer["depth"] == 1
    assert [entry["module"] for entry in answer["items"]] == ["h", "head"]
    assert sum(entry["elements"] for entry in answer["items"]) == whole["elements"]
    squares = sum(e["update"]["rms"] ** 2 * e["elements"] for e in answer["items"])
    assert math.sqrt(squares / whole["elements"]) == pytest.approx(whole["update"]["rms"])
    assert max(e["update"]["max"] for e in answer["items"]) == whole["update"]["max"]
    first = answer["items"][0]
    assert first["parameters"] == 2
    assert len(first["update"]["histogram"]) == HISTOGRAM_BINS
    assert set(first["moments"]) == {"exp_avg", "exp_avg_sq"}
    deeper = http.get("/v1/checkpoints/gpt/9/stats/modules?depth=2").json()["items"]
    assert [entry["module"] for entry in deeper] == ["h.0", "h.1", "head"]


def test_modules_have_etags_of_their_own(http) -> None:
    path = "/v1/checkpoints/gpt/9/stats/modules"
    etag = http.get(path).headers["ETag"]
    assert http.get(path, headers={"If-None-Match": etag}).status_code == 304
    assert http.get(f"{path}?depth=2", headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize("depth", [0, 33, "x"])
def test_depths_that_cannot_work(http, check_problem, depth) -> None:
    path = f"/v1/checkpoints/gpt/9/stats/modules?depth={depth}"
    check_problem(http.get(path), 422, "invalid_request")


def test_series(http, root) -> None:
    with checkpoint.open(root / "gpt" / "9") as opened:
        total = asdict(stats.compute(opened).total)
    moments = {entry["moment"]: {**entry["value"], **entry} for entry in total["moments"]}
    known = {"update": total["update"], **moments}
    for metric in METRICS:
        answer = http.get(f"/v1/runs/gpt/series?metric={metric}").json()
        assert (answer["run"], answer["metric"]) == ("gpt", metric)
        assert [point["step"] for point in answer["items"]] == ["9", "10"]
        assert {point["state"] for point in answer["items"]} == {"done"}
        assert all(point["optimizer_step"] == 1 for point in answer["items"])
        quantity, _, name = metric.partition(".")
        expected = known[quantity][name] if name else total[quantity]
        assert answer["items"][0]["value"] == pytest.approx(expected, rel=1e-6), metric


def test_series_of_a_part(http, root) -> None:
    report = http.get("/v1/checkpoints/gpt/9/stats").json()["parameters"]
    by_name = {entry["name"]: entry["update"]["rms"] for entry in report}
    one = http.get("/v1/runs/gpt/series?param=h.1.w").json()["items"][0]
    assert one["value"] == pytest.approx(by_name["h.1.w"])
    module = http.get("/v1/runs/gpt/series?module=h").json()["items"][0]
    mean = math.sqrt((by_name["h.0.w"] ** 2 + by_name["h.1.w"] ** 2) / 2)
    assert module["value"] == pytest.approx(mean)
    nothing = http.get("/v1/runs/gpt/series?module=ha").json()["items"][0]
    assert (nothing["value"], nothing["state"]) == (None, "done")


def test_series_choose_steps(http, root, optimizer) -> None:
    for step in range(11, 31):
        checkpoint.save(root / "gpt" / str(step), optimizer=optimizer(step))
    answer = http.get("/v1/runs/gpt/series?points=3").json()
    assert [point["step"] for point in answer["items"]] == ["9", "19", "30"]
    assert http.get("/v1/runs/gpt/series?from=2").json()["code"] == "checkpoint_not_found"
    assert len(http.get("/v1/runs/gpt/series?from=1&to=1").json()["items"]) == 22


def test_series_that_cannot_be(http, check_problem) -> None:
    check_problem(http.get("/v1/runs/none/series"), 404, "checkpoint_not_found")
    check_problem(http.get("/v1/runs/%2e%2e/series"), 400, "unsafe_name")
    for query in ("metric=x", "metric=update", "param=a&module=b", "points=0", "points=501"):
        check_problem(http.get(f"/v1/runs/gpt/series?{query}"), 422, "invalid_request")


def test_series_do_not_wait_for_ever_and_name_what_is_damaged(
    root, settings, serving, monkeypatch
) -> None:
    import threading

    release, compute = threading.Event(), stats.compute

    def slow(source, **options):
        assert release.wait(30)
        return compute(source, **options)

    monkeypatch.setattr(stats, "compute", slow)
    (root / "gpt" / "8").mkdir()
    (root / "gpt" / "8" / "luma.json").write_text("{}")
    app = create_app(replace(settings, series_seconds=0.1))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        first = http.get("/v1/runs/gpt/series").json()["items"]
        assert [point["state"] for point in first] == ["failed", "pending", "pending"]
        assert first[1]["value"] is None
        release.set()
        while "pending" in str(second := http.get("/v1/runs/gpt/series").json()["items"]):
            pass
        assert [point["state"] for point in second] == ["failed", "done", "done"]


NAMES = ("h.0.w", "h.1.w", "head")


def update(opened: checkpoint.Checkpoint, name: str) -> torch.Tensor:
    """The update of AdamW's first step."""
    m, v = (opened.read(name, moment).double() for moment in ("exp_avg", "exp_avg_sq"))
    return ((m / (1 - 0.9)) / ((v / (1 - 0.999)).sqrt() + 1e-8)).reshape(-1)


def test_comparison(http, root) -> None:
    answer = http.get("/v1/compare?a=gpt/9&b=gpt/10").json()
    with checkpoint.open(root / "gpt" / "9") as a, checkpoint.open(root / "gpt" / "10") as b:
        expected = stats.diff(a, b)
        updates = [torch.cat([update(opened, name) for name in NAMES]) for opened in (a, b)]
    assert answer["difference"] == json.loads(json.dumps(asdict(expected)))
    cosine = torch.nn.functional.cosine_similarity(*updates, dim=0).item()
    assert answer["cosine_update"] == pytest.approx(cosine, abs=1e-6)
    same = http.get("/v1/compare?a=gpt/9&b=gpt/9").json()
    assert same["difference"]["identical"]
    assert same["cosine_update"] == pytest.approx(1)
    etag = http.get("/v1/compare?a=gpt/9&b=gpt/10").headers["ETag"]
    path = "/v1/compare?a=gpt/9&b=gpt/10"
    assert http.get(path, headers={"If-None-Match": etag}).status_code == 304


def test_comparisons_that_cannot_be(http, check_problem) -> None:
    for query, status, code in (
        ("a=gpt/9", 422, "invalid_request"),
        ("a=gpt/9&b=gpt", 422, "invalid_request"),
        ("a=gpt/9&b=gpt/", 400, "unsafe_name"),
        ("a=gpt/9&b=../x", 400, "unsafe_name"),
        ("a=gpt/9&b=gpt/9/x", 400, "unsafe_name"),
        ("a=gpt/9&b=gpt/404", 404, "checkpoint_not_found"),
    ):
        check_problem(http.get(f"/v1/compare?{query}"), status, code)
