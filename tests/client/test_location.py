"""What a luma:// URL names."""

import pytest

from luma_client.location import Location, is_place_on_server
from luma_core.errors import ConfigurationError, LumaError


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("luma://localhost", "http://localhost:8000"),
        ("luma://127.0.0.1:81/a", "http://127.0.0.1:81"),
        ("luma://[::1]:81/a/b", "http://[::1]:81"),
        ("luma://[::1]", "http://[::1]:8000"),
        ("luma://Example.org/a/b/c", "https://example.org"),
        ("luma://example.org:8443", "https://example.org:8443"),
        ("luma+http://example.org", "http://example.org:8000"),
        ("luma+http://example.org:80/", "http://example.org:80"),
    ],
)
def test_the_server_behind_a_url(url, base):
    assert Location.parse(url).base_url == base
    assert is_place_on_server(url)


def test_names():
    place = Location.parse("luma://h/run/step/")
    assert place.names == ("run", "step")
    assert place.checkpoint() == ("run", "step")
    assert str(place / "file") == "luma://h/run/step/file"
    assert Location.parse("luma://h").names == ()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "runs/1",
        "http://h/a/b",
        "luma:/h/a",
        "luma://",
        "luma:///a/b",
        "luma://h:port/a",
        "luma://h:99999/a",
        "luma://[::1/a",
        "luma://user:secret@h/a/b",
        "luma://h/a/b?x=1",
        "luma://h/a/b#x",
        "luma://h/../b",
        "luma://h/a//b",
        "luma://h/a/%2e%2e",
        "luma://h/.a/b",
    ],
)
def test_urls_that_name_nothing(url):
    with pytest.raises(LumaError) as caught:
        Location.parse(url)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("url", ["luma://h", "luma://h/run", "luma://h/run/step/file"])
def test_what_is_no_checkpoint(url):
    with pytest.raises(ConfigurationError, match="a run and a step"):
        Location.parse(url).checkpoint()
