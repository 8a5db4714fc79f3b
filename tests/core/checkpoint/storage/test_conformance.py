"""Every store of ours keeps the promises of a store."""

import errno
import fcntl
from pathlib import Path

import fsspec
import pytest

from luma_core.checkpoint.storage.commit import AtomicRename, ConditionalPut, ManifestLast
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.storage.open import open_store
from luma_core.testing.store import StoreConformance


class TestLocal(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path):
        return LocalStore(tmp_path / "a" / "b")

    def get(self, store, name):
        path = Path(store.url, name)
        return path.read_bytes() if path.exists() else None

    def set(self, store, name, data):
        Path(store.url).mkdir(parents=True, exist_ok=True)
        Path(store.url, name).write_bytes(data)

    def test_strategy(self, store):
        assert isinstance(store.strategy, AtomicRename)


class TestLocalWithoutLocks(TestLocal):
    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch):
        def refuse(*_arguments):
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)


class TestMemory(StoreConformance):
    @pytest.fixture
    def store(self, request):
        store = open_store(f"memory://luma-{request.node.name.translate({91: 45, 93: 45})}/run")
        yield store
        if store.fs.exists(store.path):
            store.fs.rm(store.path, recursive=True)

    def get(self, store, name):
        files = fsspec.filesystem("memory").store
        found = files.get(f"{store.path}/{name}")
        return None if found is None else found.getvalue()

    def set(self, store, name, data):
        fsspec.filesystem("memory").pipe_file(f"{store.path}/{name}", data)

    def test_strategy(self, store):
        assert isinstance(store.strategy, ManifestLast)


class S3Conformance(StoreConformance):
    large_bytes = 40 << 20

    def get(self, store, name):
        try:
            found = store.fs.call_s3("get_object", Bucket=store.bucket, Key=store.key(name))
        except FileNotFoundError:
            return None
        return fsspec.asyn.sync(store.fs.loop, found["Body"].read)

    def set(self, store, name, data):
        store.fs.call_s3("put_object", Bucket=store.bucket, Key=store.key(name), Body=data)


class TestSeaweedFS(S3Conformance):
    @pytest.fixture
    def store(self, seaweedfs, new_prefix):
        return seaweedfs.store(new_prefix)

    def test_strategy(self, store):
        assert isinstance(store.strategy, ConditionalPut)

    def test_uploads_in_flight_are_listed_until_they_are_removed(self, store):
        def uploads():
            found = store.fs.call_s3(
                "list_multipart_uploads", Bucket=store.bucket, Prefix=store.prefix
            )
            return [upload["Key"] for upload in found.get("Uploads", ())]

        out = store.write("x")
        out.write(b"a" * self.large_bytes)
        store.discard_leftovers(older_than_seconds=600)
        assert uploads() == [store.key("x")]
        store.discard_leftovers()
        assert uploads() == []
        out.discard()


class TestStoreWithoutConditions(S3Conformance):
    @pytest.fixture
    def store(self, rclone, new_prefix):
        return rclone.store(new_prefix)

    def test_strategy(self, store):
        assert isinstance(store.strategy, ManifestLast)
