"""Pools, images and models that lie elsewhere, on fsspec's memory file system and on a local S3 server."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from ostlight.config.schema import Piece
from ostlight.data import remote, remote_cache, remote_server
from ostlight.data.pool import Pool
from ostlight.data.remote import Blocks, RemotePath, fetch_folder, is_remote, local_model, path_of
from ostlight.data.sample import Sample
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord, DataError

Write = Callable[[str, bytes], str]

_encoded = io.BytesIO()
Image.new("RGB", (4, 4)).save(_encoded, "PNG")
IMAGE = _encoded.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(remote_cache.CACHE_FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(remote_server, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(remote_cache, "_usage", remote_cache._Usage())
    remote_cache.cache_folder.cache_clear()
    remote.forget()
    yield tmp_path / "cache"
    remote_cache.cache_folder.cache_clear()


@pytest.fixture
def memory() -> Iterator[Write]:
    """Writes a file of the memory file system; returns its address."""
    filesystem = fsspec.filesystem("memory")

    def write(name: str, content: bytes) -> str:
        filesystem.pipe(f"memory://{name}", content)
        return f"memory://{name}"

    yield write
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which bytes of which files of the memory file system were read."""
    found: list[str] = []
    original = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        found.append(f"{path} {start}-{end}")
        return original(self, path, start, end, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return found


def record(n: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"r{n}", "question": f"q{n}", "answer": f"a{n}", **fields}


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in records).encode()


def parquet(*records: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(records)), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("pool.jsonl", lines),
        ("pool.json", lambda *records: json.dumps(records).encode()),
        ("pool.parquet", parquet),
    ],
)
def test_a_remote_file_reads_as_a_local_one(name: str, write: Any, memory: Write, tmp_path: Path) -> None:
    content = write(*(record(n) for n in range(40)))
    (tmp_path / name).write_bytes(content)
    here, there = Pool.open(tmp_path / name), Pool.open(memory(f"bucket/{name}", content))
    order = [7, *range(40), 3]
    assert [s for _, s in there.read(order)] == [s for _, s in here.read(order)]
    assert there.files[0].name == name
    assert pickle.loads(pickle.dumps(there))[5] == here[5]
    written = write_subset(there, [3, 1], tmp_path / "subset")
    assert [s.id for _, s in Pool.open(written[0]).read(range(2)) if isinstance(s, Sample)] == ["r3", "r1"]


def test_folders_patterns_and_clones_of_the_hub(memory: Write) -> None:
    memory("set/data/train-00000-of-00002.jsonl", lines(record(0)))
    memory("set/data/train-00001-of-00002.jsonl", lines(record(1)))
    memory("set/data/test-00000-of-00001.jsonl", lines(record(2)))
    memory("set/README.md", b"---\nconfigs: [{config_name: default, data_files: data/test-*}]\n---\n")
    assert len(Pool.open("memory://set/data")) == 3
    assert len(Pool.open("memory://set/data/train-*.jsonl")) == 2
    assert [s.id for _, s in Pool.open("memory://set").read([0]) if isinstance(s, Sample)] == ["r2"]
    memory("set/README.md", b"# no settings\n")
    assert len(Pool.open("memory://set")) == 2
    pieces = [Piece("memory://set/data/train-00000-of-00002.jsonl", source="a"), "memory://set/data/test-*"]
    assert [Pool.open(pieces)[k].id for k in (0, 1)] == ["r0", "r2"]


def test_a_pool_is_named_without_reading_it(memory: Write, reads: list[str]) -> None:
    address = memory("bucket/pool.jsonl", lines(record(0), record(1)))
    pool = Pool.open(address)
    reads.clear()
    fingerprint = pool.fingerprint()
    assert reads == []
    assert Pool.open(address).fingerprint() == fingerprint
    memory("bucket/pool.jsonl", lines(record(0), record(2)))
    assert Pool.open(address).fingerprint() != fingerprint


def test_the_index_is_built_once(memory: Write, reads: list[str], tmp_path: Path) -> None:
    index = tmp_path / "run" / "index"
    address = memory("bucket/pool.jsonl", lines(*(record(n) for n in range(5))))
    first = Pool.open(address, index=index)
    sample = first[3]
    reads.clear()
    again = Pool.open(address, index=index)
    assert again.fingerprint() == first.fingerprint()
    assert reads == []
    assert again[3] == sample
    memory("bucket/pool.jsonl", lines(*(record(n) for n in range(7))))
    assert len(Pool.open(address, index=index)) == 7


def csv(*records: dict[str, Any]) -> bytes:
    return "".join(",".join(row) + "\n" for row in (records[0], *(one.values() for one in records))).encode()


def tar(*records: dict[str, Any]) -> bytes:
    """One member for each record, and a link to the image of the first."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for n, one in enumerate(records):
            content, member = json.dumps(one).encode(), tarfile.TarInfo(f"{n}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            member = tarfile.TarInfo(f"{n}.png")
            member.type, member.linkname = (tarfile.REGTYPE, "") if n == 0 else (tarfile.LNKTYPE, "0.png")
            member.size = len(IMAGE) if n == 0 else 0
            archive.addfile(member, io.BytesIO(IMAGE) if n == 0 else None)
    return sink.getvalue()


@pytest.mark.parametrize("write", [lines, parquet, csv, tar], ids=lambda write: write.__name__)
def test_an_index_holds_for_one_state_of_a_local_file(write: Any, tmp_path: Path) -> None:
    path, index = tmp_path / ("pool.csv" if write is csv else "pool"), tmp_path / "index"
    path.write_bytes(write(*(record(n) for n in range(5))))
    first = Pool.open(path, index=index)
    (stored,) = index.iterdir()
    again = Pool.open(path, index=index)
    assert [s for _, s in again.read(range(5))] == [s for _, s in first.read(range(5))]
    assert vars(again.sources[0]).keys() == vars(first.sources[0]).keys()
    stored.write_bytes(b"damaged")
    assert len(Pool.open(path, index=index)) == 5
    path.write_bytes(write(*(record(n) for n in range(6))))
    assert len(Pool.open(path, index=index)) == 6


def test_a_file_is_read_in_blocks_and_each_once(
    memory: Write, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 100)
    content = np.random.default_rng(0).bytes(1050)
    path = RemotePath(memory("bucket/file.bin", content))
    blocks = Blocks(path)
    assert blocks.bytes(95, 210) == content[95:305]
    assert blocks.bytes(1000, 500) == content[1000:]
    assert blocks.bytes(2000, 5) == b""
    assert [read.rpartition(" ")[2] for read in reads] == ["0-100", "100-200", "200-300", "300-400", "1000-1050"]
    assert Blocks(path).bytes(0, 1050) == content
    assert len(reads) == 11
    with path.open("rb") as file:
        assert file.read() == content
        file.seek(-3, os.SEEK_END)
        assert file.read(9) == content[-3:]


def test_the_cache_keeps_to_its_limit(memory: Write, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote_cache.CACHE_GB, "0.00001")  # 10,000 bytes
    for n in range(30):
        assert RemotePath(memory(f"bucket/{n}", bytes([n]) * 1000)).read_bytes() == bytes([n]) * 1000
        assert sum(file.stat().st_size for file in own_cache.rglob("*") if file.is_file()) <= 10_000
    monkeypatch.setenv(remote_cache.CACHE_GB, "much")
    with pytest.raises(DataError, match="OSTLIGHT_CACHE_GB"):
        RemotePath(memory("bucket/last", b"x")).read_bytes()


def image_pool(memory: Write, png: Callable[[int], bytes], *names: str) -> Pool:
    memory("images/a.png", png(7))
    memory("images/sub/b.png", png(8))
    memory("elsewhere/c.png", png(9))
    content = lines(*(record(n, image=name) for n, name in enumerate(names)))
    return Pool.open(memory("bucket/pool.jsonl", content), image_root="memory://images")


def test_images_below_a_remote_root(memory: Write, png: Callable, shade: Callable) -> None:
    pool = image_pool(memory, png, "a.png", "./sub/../sub/b.png", "memory://images/sub/b.png")
    assert [shade(pool[k].images[0]) for k in range(3)] == [7, 8, 8]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.png", "missing_image"),
        ("../elsewhere/c.png", "image_outside_root"),
        ("/etc/passwd", "image_outside_root"),
        ("memory://elsewhere/c.png", "remote_image"),
        ("https://169.254.169.254/latest", "remote_image"),
        ("memory://images/../elsewhere/c.png", "image_outside_root"),
    ],
)
def test_no_image_outside_a_remote_root_is_read(name: str, reason: str, memory: Write, png: Callable) -> None:
    with pytest.raises(BadRecord) as caught:
        _ = image_pool(memory, png, name)[0]
    assert caught.value.reason == reason


def test_remote_images_of_a_subset_stay_where_they_are(memory: Write, png: Callable, tmp_path: Path) -> None:
    pool = image_pool(memory, png, "a.png", "sub/b.png")
    (written, *_) = write_subset(pool, [1], tmp_path / "subset")
    assert not list((tmp_path / "subset").rglob("*.png"))
    assert Pool.open(written, image_root="memory://images")[0].images == pool[1].images


def test_a_model_folder_is_copied_once(memory: Write, own_cache: Path) -> None:
    memory("models/tiny/config.json", b"{}")
    memory("models/tiny/sub/weights.bin", b"12345")
    folder = fetch_folder("memory://models/tiny")
    assert (folder / "sub" / "weights.bin").read_bytes() == b"12345"
    assert fetch_folder("memory://models/tiny") == folder
    memory("models/tiny/sub/weights.bin", b"54321")
    remote.forget()
    assert (Path(local_model("memory://models/tiny")) / "sub" / "weights.bin").read_bytes() == b"54321"
    assert local_model("org/name") == "org/name"
    with pytest.raises(DataError):
        fetch_folder("memory://models/none")


def test_what_fails_for_the_moment_is_tried_again(memory: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = RemotePath(memory("bucket/file", b"content"))
    original, failures = MemoryFileSystem.cat_file, [ConnectionError("reset"), TimeoutError()]

    def flaky(self: Any, *arguments: Any, **options: Any) -> bytes:
        if failures:
            raise failures.pop()
        return original(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", flaky)
    assert path.read_bytes() == b"content"
    failures += [ConnectionError("reset")] * remote_server.ATTEMPTS
    with pytest.raises(OSError, match="reset"):
        RemotePath(memory("bucket/other", b"content")).read_bytes()


def test_a_transfer_that_broke_off_is_tried_again_and_never_taken_for_the_whole(
    memory: Write, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10)
    whole, whole_file, cut = MemoryFileSystem.cat_file, MemoryFileSystem.get_file, 1

    def cat_file(self: Any, *arguments: Any, **options: Any) -> bytes:
        nonlocal cut
        cut -= 1
        data = whole(self, *arguments, **options)
        return data[:4] if cut >= 0 else data

    def get_file(self: Any, path: str, copy: str, **options: Any) -> None:
        nonlocal cut
        cut -= 1
        whole_file(self, path, copy, **options)
        if cut >= 0:
            Path(copy).write_bytes(Path(copy).read_bytes()[:4])

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    content = lines(record(0), record(1))
    path = RemotePath(memory("bucket/pool.jsonl", content))
    assert Blocks(path).bytes(0, 1000) == content
    for file in (own_cache / "files").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:3])
    assert Blocks(path).bytes(0, 1000) == content
    cut = 1
    assert path.read_bytes() == content
    folder = f"memory://{memory('models/tiny/weights.bin', content).removeprefix('memory://').rpartition('/')[0]}"
    cut = 1
    assert (fetch_folder(folder) / "weights.bin").read_bytes() == content
    cut, other = 100, RemotePath(memory("bucket/other.jsonl", content))
    for read in (lambda: Blocks(other).bytes(0, 1000), other.read_bytes, lambda: list(other.open("rb"))):
        with pytest.raises(OSError, match=r"4 of \d+ bytes came"):
            read()
    with pytest.raises(DataError, match="other.jsonl.*bytes came"):
        Pool.open(str(other))


@pytest.mark.parametrize("error", [PermissionError("no"), type("NoCredentialsError", (Exception,), {})("none found")])
def test_missing_credentials_say_what_to_set(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, *arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    monkeypatch.setitem(remote_server._HINTS, "memory", "set THIS")
    with pytest.raises(DataError, match="set THIS") as caught:
        Pool.open("memory://bucket/pool.jsonl")
    assert str(caught.value.path).endswith("pool.jsonl")


@pytest.mark.parametrize(
    ("address", "said"), [("memory://bucket/none.jsonl", "does not exist"), ("nowhere://a/b.jsonl", "nowhere")]
)
def test_what_is_not_there_is_refused(address: str, said: str, memory: Write) -> None:
    with pytest.raises(DataError, match=said):
        Pool.open(address)


@pytest.mark.parametrize(
    ("named", "remote_file"),
    [
        ("s3://bucket/a.jsonl", True),
        ("hf://datasets/org/set", True),
        ("https://host/a.jsonl", True),
        ("file:///data/a.jsonl", False),
        ("data/a.jsonl", False),
        ("C:/data/a.jsonl", False),
        ("a:b.jsonl", False),
    ],
)
def test_what_is_remote(named: str, remote_file: bool) -> None:
    assert is_remote(named) is remote_file
    assert isinstance(path_of(named), RemotePath) is remote_file
    assert not remote_file or str(path_of(named)) == named


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A bucket of a local S3 server."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("cryptography")
    import logging

    logging.getLogger("werkzeug").setLevel("ERROR")
    with pytest.MonkeyPatch.context() as patch:
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
        filesystem.mkdir("bucket")
        yield filesystem
        server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_pool_on_s3(s3: Any, png: Callable, shade: Callable, tmp_path: Path) -> None:
    s3.pipe("bucket/pool/a.jsonl", lines(record(0, image="x.png"), record(1)))
    s3.pipe("bucket/pool/b.parquet", parquet(record(2), record(3)))
    s3.pipe("bucket/images/x.png", png(5))
    index = tmp_path / "index"
    pool = Pool.open("s3://bucket/pool", image_root="s3://bucket/images", index=index)
    assert [s.id for _, s in pool.read(range(4)) if isinstance(s, Sample)] == ["r0", "r1", "r2", "r3"]
    assert shade(pool[0].images[0]) == 5
    fingerprint = pool.fingerprint()
    assert Pool.open("s3://bucket/pool", index=index).fingerprint() == fingerprint
    s3.pipe("bucket/pool/a.jsonl", lines(record(0, image="x.png"), record(9)))
    changed = Pool.open("s3://bucket/pool", image_root="s3://bucket/images", index=index)
    assert changed.fingerprint() != fingerprint
    assert changed[1].id == "r9"
    with pytest.raises(DataError, match="does not exist"):
        Pool.open("s3://bucket/none.jsonl")
