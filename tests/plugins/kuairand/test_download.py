"""`recsys data kuairand`: checked before it is unpacked, gone on from where it broke off."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from plugins.kuairand import download
from plugins.kuairand.download import DatasetSource, NotFetched, fetch
from runtime.cli.main import app

Handler = Callable[[httpx.Request], httpx.Response]


def _packed(names: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name, content in names.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            packed.addfile(about, io.BytesIO(content))
    return out.getvalue()


ARCHIVE = _packed({"KuaiRand-Pure/data/log_standard_4_22.csv": b"user_id\n" * 1000})


def _source(content: bytes = ARCHIVE) -> DatasetSource:
    return DatasetSource("toy", "http://there/toy.tar.gz", hashlib.md5(content).hexdigest())


def _client(handler: Handler) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(handler))


class _Server:
    """Serves the archive, whole or from an offset, and breaks off where it is told to."""

    def __init__(self, content: bytes = ARCHIVE, ranges: bool = True) -> None:
        self.content, self.ranges = content, ranges
        self.break_at: int | None = None
        self.sent: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        begins = 0
        if self.ranges and (asked := request.headers.get("range")):
            begins = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begins > len(self.content):
                return httpx.Response(416)
        body = self.content[begins:]
        self.sent.append(len(body))
        stop = self.break_at

        def stream():  # type: ignore[no-untyped-def]
            yield body[: stop if stop is not None else len(body)]
            if stop is not None:
                raise httpx.ReadError("broke off")

        return httpx.Response(
            206 if begins else 200, content=stream(), headers={"content-length": str(len(body))}
        )


def test_it_is_fetched_checked_and_unpacked(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    there = fetch(_source(), tmp_path / "k", _client(_Server()), lambda *at: told.append(at))
    assert not there
    assert (tmp_path / "k" / "KuaiRand-Pure" / "data" / "log_standard_4_22.csv").exists()
    assert told[-1] == (len(ARCHIVE), len(ARCHIVE))
    assert [entry.name for entry in tmp_path.iterdir()] == ["k"]  # nothing is left beside it
    assert fetch(_source(), tmp_path / "k", _client(_Server()))  # it is there already


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_is_gone_on_from(tmp_path: Path, ranges: bool) -> None:
    server = _Server(ranges=ranges)
    server.break_at = 100
    with pytest.raises(NotFetched, match="RECSYS_DATA"):
        fetch(_source(), tmp_path / "k", _client(server))
    assert not (tmp_path / "k").exists()
    server.break_at = None
    fetch(_source(), tmp_path / "k", _client(server))
    assert server.sent[-1] == (len(ARCHIVE) - 100 if ranges else len(ARCHIVE))
    assert (tmp_path / "k" / "KuaiRand-Pure").is_dir()


def test_what_has_another_md5_is_not_unpacked(tmp_path: Path) -> None:
    other = _packed({"evil.csv": b"x"})
    with pytest.raises(NotFetched, match="has MD5"):
        fetch(_source(), tmp_path / "k", _client(_Server(other)))
    assert list(tmp_path.iterdir()) == []  # and isn't gone on from either


def test_what_would_lie_outside_the_folder_is_refused(tmp_path: Path) -> None:
    evil = _packed({"../outside.csv": b"x"})
    with pytest.raises(NotFetched, match="can't be unpacked"):
        fetch(_source(evil), tmp_path / "in" / "k", _client(_Server(evil)))
    assert not (tmp_path / "in" / "outside.csv").exists()
    assert not (tmp_path / "in" / "k").exists()


def test_a_part_longer_than_the_whole_is_removed(tmp_path: Path) -> None:
    source = _source()
    part = tmp_path / f".k.{source.md5[:8]}.part"
    part.write_bytes(b"x" * (len(ARCHIVE) + 1))
    with pytest.raises(NotFetched, match="no part of"):
        fetch(source, tmp_path / "k", _client(_Server()))
    assert not part.exists()


def test_a_whole_archive_that_was_left_is_only_unpacked(tmp_path: Path) -> None:
    source, server = _source(), _Server()
    (tmp_path / f".k.{source.md5[:8]}.part").write_bytes(ARCHIVE)
    fetch(source, tmp_path / "k", _client(server))
    assert server.sent == []


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(NotFetched, match="something else"):
        fetch(_source(), tmp_path, _client(_Server()))
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_without_network_one_sentence_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = DatasetSource("KuaiRand-Pure", "http://127.0.0.1:9/x.tar.gz", "0" * 32)
    monkeypatch.setattr(download, "KUAIRAND", unreachable)
    result = CliRunner().invoke(app, ["data", "kuairand", "--to", str(tmp_path / "k")])
    assert result.exit_code == 1
    assert "CC BY-SA 4.0" in result.output
    assert "RECSYS_DATA" in result.output and str(tmp_path / "k") in result.output
    assert "Traceback" not in result.output
