"""A server as an fsspec file system."""

from __future__ import annotations

import itertools
import json

import fsspec
import pytest

import luma_client
from luma_client import LumaFileSystem
from luma_core import checkpoint
from luma_core.checkpoint.storage.open import open_store
from luma_core.errors import ConfigurationError, LumaError
from luma_core.testing.store import loaded_steps, save

_runs = itertools.count()


@pytest.fixture
def url(server) -> str:
    """A checkpoint."""
    url = f"{server.url}/fs-{next(_runs)}/1"
    save(open_store(url), 2)
    return url


def test_importing_the_client_makes_the_protocols_known():
    assert luma_client.LumaFileSystem is LumaFileSystem
    for protocol in ("luma", "luma+http"):
        assert fsspec.get_filesystem_class(protocol) is LumaFileSystem


def test_runs_and_steps_are_folders(url):
    fs, path = fsspec.url_to_fs(url)
    run = path.split("/")[1]
    assert path == f"/{run}/1"
    assert f"/{run}" in fs.ls("/", detail=False)
    assert fs.ls(f"/{run}", detail=False) == [path]
    assert all(fs.isdir(folder) for folder in ("/", f"/{run}", path))
    assert fs.isfile(f"{path}/luma.json")
    assert not fs.exists(f"/{run}/2")
    assert not fs.exists(f"{path}/nothing")
    assert fs.unstrip_protocol(f"{path}/x") == f"{url}/x"
    files = {file.name: file.bytes for file in checkpoint.open(url).manifest.files}
    found = {entry["name"].rpartition("/")[2]: entry["size"] for entry in fs.ls(path)}
    assert found.keys() == files.keys() | {"luma.json"}
    assert all(found[name] == size for name, size in files.items())
    assert len(fs.glob(f"{path}/optimizer-*")) > 1
    for missing in ("/nothing", f"{path}/nothing", f"{path}/luma.json/deeper"):
        with pytest.raises(FileNotFoundError):
            fs.ls(missing)


def test_files_are_read_in_ranges(url):
    fs, path = fsspec.url_to_fs(f"{url}/luma.json")
    whole = fs.cat_file(path)
    assert json.loads(whole)["manifest"]["format"] == "luma"
    assert fs.cat_file(path, 3, 10) == whole[3:10]
    assert fs.cat_file(path, -5) == whole[-5:]
    assert fs.info(path)["size"] == fs.size(path) == len(whole)
    with fs.open(path, "rb", block_size=100) as file:
        file.seek(50)
        assert file.read(300) == whole[50:350]
        file.seek(-10, 2)
        assert file.read() == whole[-10:]
    with fsspec.open(f"{url}/luma.json", "rt") as file:
        assert file.read().encode() == whole
    with pytest.raises(FileNotFoundError):
        fs.open(path.replace("luma.json", "nothing"))


def test_a_checkpoint_is_written_file_by_file(url, server):
    fs, path = fsspec.url_to_fs(url)
    other = f"/fs-{next(_runs)}/copy"
    fs.makedirs(other, exist_ok=True)
    names = sorted(fs.ls(path, detail=False), key=lambda name: name.endswith("luma.json"))
    for name in names:
        assert not checkpoint.exists(f"{server.url}{other}")
        with fs.open(name, "rb") as source, fs.open(f"{other}/{name.split('/')[-1]}", "wb") as out:
            out.write(source.read())
    assert loaded_steps(open_store(f"{server.url}{other}")) == 2


def test_an_exception_discards_what_was_written(url):
    fs, path = fsspec.url_to_fs(url)
    before = fs.cat_file(f"{path}/luma.json")

    class CallerError(Exception):
        pass

    def interrupted() -> None:
        with fs.open(f"{path}/luma.json", "wb") as out:
            out.write(b"half")
            raise CallerError

    with pytest.raises(CallerError):
        interrupted()
    assert fs.cat_file(f"{path}/luma.json") == before
    with pytest.raises(LumaError), fs.open(f"{path}/luma.json", "wb") as out:
        out.write(b"no manifest")
    assert fs.cat_file(f"{path}/luma.json") == before


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "notes.txt", "a b"])
def test_other_files_than_a_checkpoints_are_refused(url, name):
    fs, path = fsspec.url_to_fs(url)
    with pytest.raises(LumaError):
        fs.open(f"{path}/{name}", "wb")


def test_deleting(url):
    fs, path = fsspec.url_to_fs(url)
    shard = fs.glob(f"{path}/optimizer-*")[0]
    with pytest.raises(ConfigurationError, match="goes with its checkpoint"):
        fs.rm(shard)
    fs.rm(path, recursive=True)
    assert not fs.exists(path)
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{path}/luma.json")


def test_hosts_of_their_own_are_file_systems_of_their_own(url):
    fs, _ = fsspec.url_to_fs(url)
    assert fsspec.url_to_fs(url)[0] is fs
    assert fsspec.url_to_fs("luma://127.0.0.1:1/a/b")[0] is not fs
    plain, path = fsspec.url_to_fs("luma+http://example.org/a/b")
    assert plain.unstrip_protocol(path) == "luma+http://example.org/a/b"
    with pytest.raises(ConfigurationError, match="host="):
        LumaFileSystem()
    with pytest.raises(ConfigurationError, match="mode="):
        fs.open("/a/b/luma.json", "ab")
