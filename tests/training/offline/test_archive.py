"""What an offline job reads of an archive, and what it refuses to do without."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.events.hashing import key_of
from recsys.events.records import EVENTS, EXAMPLES, ErasedExample, Example, Forget, Withdrawn, pack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append
from tests.support.training.archived_examples import COUNT, MINUTE_MS, archived, at, hour_file, remove_hour
from tests.support.training.small_feed import DENSE, FEATURES, PARTITIONS, START_MS
from training.archive.digest import seal
from training.archive.files import ArchiveFile, files_of
from training.offline.archive import MissingExamples, Range, cache_archive, fingerprint
from training.offline.cache import Cache
from training.offline.examples import id_hash
from training.offline.job import cached


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return archived(tmp_path / "archive")


def cache(
    archive: Path, until: int = COUNT, from_: int | None = None, gaps: bool = False, horizon_ms: int = 0
) -> Cache:
    """Of minutes ``from_`` to ``until``."""
    first = None if from_ is None else START_MS + from_ * MINUTE_MS
    span = Range(START_MS + until * MINUTE_MS, first)
    folder = archive.parent / f"cache-{until}-{from_}"
    return cache_archive(archive, folder, FEATURES, DENSE, horizon_ms, span, gaps)


def ids(*numbers: int) -> list[int]:
    return id_hash(np.array([(n % PARTITIONS, n, 0) for n in numbers], np.int64)).tolist()


def learned(its: Cache) -> list[int]:
    return [i for number in range(len(its)) for i in its.read(number).ids.tolist()]


def test_what_the_live_line_predicted_as_it_served_is_read(tmp_path: Path) -> None:
    said = np.array([0.25, 0.5, 0.75], np.float32)
    what = {
        0: said.tobytes(),
        1: said[:2].tobytes(),  # of another number of labels
        2: np.array([0.25, np.nan, 0.5], np.float32).tobytes(),
        3: np.array([0.25, 1.5, 0.5], np.float32).tobytes(),
        4: b"",
    }
    examples = [
        at(n, predicted=what[n % 5], served_by="main/0" if n < 40 else "main/1") for n in range(COUNT)
    ]
    examples[5] = at(5, predicted=what[0], served_by="cand-1/0")
    examples[10] = at(10, predicted=what[0])
    its = cache(archived(tmp_path / "archive", examples=examples))
    taught = np.concatenate([its.read(number).taught for number in range(len(its))])
    known = [n for n in range(0, COUNT, 5) if n not in (5, 10)]  # of a canary, of nobody
    assert (taught[known] == said).all() and len(taught) == COUNT
    assert np.isnan(np.delete(taught, known, 0)).all()
    assert its.about.predicted == {"main/0": 6, "main/1": 9}


def test_a_cache_of_an_older_format_is_made_anew(archive: Path) -> None:
    folder = cache(archive).folder
    about = (folder / "about.json").read_text()
    (folder / "about.json").write_text(about.replace('"format":2,', ""))
    with pytest.raises(ValueError, match="is a cache of format 1, expected 2; remove it"):
        Cache(folder)
    folder.rename(archive.parent / "examples-key")
    made = cached(archive.parent, "key", lambda _: cache(archive))
    assert made.folder == folder and len(made), "what stood there isn't used"


def test_a_range_is_read_in_event_time_with_where_to_go_on(archive: Path) -> None:
    its = cache(archive, until=65, from_=15)
    assert learned(its) == ids(*range(15, 65))
    assert its.about.offsets == {0: 22, 1: 22, 2: 21}, "of 27 in each partition"
    assert its.about.log_id == (archive / "log_id").read_text()
    last = its.about.last_ms
    assert last == START_MS + 55 * MINUTE_MS, "a fifth of what is shorter than five days"
    assert sum(len(its.read(n)) for n in range(its.about.last, len(its))) == 10
    whole = cache(archive)
    assert learned(whole) == ids(*range(COUNT)) and whole.about.offsets == {0: 27, 1: 27, 2: 27}


def test_files_that_were_merged_meanwhile_are_listed_again(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = 1  # listings whose first file is gone by the time it is read

    def listed(folder: Path, topic: str) -> list[ArchiveFile]:
        nonlocal stale
        files = files_of(folder, topic)
        if topic == EXAMPLES and stale > 0:
            stale -= 1
            files[0] = files[0]._replace(path=files[0].path.with_name("gone.parquet"))
        return files

    monkeypatch.setattr("training.offline.archive.files_of", listed)
    assert learned(cache(archive)) == ids(*range(COUNT)) and stale == 0
    stale = 100
    with pytest.raises(ValueError, match="a file of the archive is gone"):
        cache(archive, until=30)


def test_features_are_those_that_were_served(archive: Path) -> None:
    block = cache(archive, until=20).read(0)
    features = at(7).features
    assert features is not None
    where = block.ids.tolist().index(ids(7)[0])
    assert block.user_keys[where].tobytes() == features.user_keys
    assert block.dense[where].tobytes() == features.dense
    assert block.labels[where].tolist() == at(7).labels


def correction(of: int, minute: int, labels: list[float]) -> Append:
    record = at(of, correction=True, previous=at(of).labels, labels=labels, watch_ms=77)
    its = pack(record_at(record, minute))
    return Append(of % PARTITIONS, b"x", its)


def record_at(record: Example, minute: int) -> Example:
    record.closed_ms = START_MS + minute * MINUTE_MS
    return record


def test_the_last_correction_before_the_end_stands(tmp_path: Path) -> None:
    also = [
        correction(3, COUNT, [1.0, 0.0]),
        correction(3, COUNT + 5, [1.0, 1.0]),
        correction(3, COUNT + 50, [0.0, 0.0]),
    ]
    archive = archived(tmp_path / "archive", also)
    for until, labels in ((COUNT, at(3).labels), (COUNT + 1, [1, 0]), (COUNT + 10, [1, 1])):
        its = cache(archive, until=until)
        block = its.read(0)
        assert block.labels[block.ids.tolist().index(ids(3)[0])].tolist() == labels
        assert len(learned(its)) == COUNT, "a correction is no example of its own"


def test_labels_are_open_where_a_correction_may_still_come(tmp_path: Path) -> None:
    open_ = [at(n, arrived=[0.5, 0.25]) for n in range(COUNT)]
    archive = archived(tmp_path / "archive", examples=open_)
    its = cache(archive, until=50, horizon_ms=10 * MINUTE_MS)
    arrived = np.concatenate([its.read(n).arrived for n in range(len(its))])
    assert (arrived[:41] == 1).all() and (arrived[41:] == [0.5, 0.25]).all()


def test_who_asked_to_be_forgotten_is_not_learned_however_late_they_asked(tmp_path: Path) -> None:
    user = at(4).user_id
    forget = Forget(partition=1, offset=9, sequence=81, user_id=user, closed_ms=START_MS + COUNT * MINUTE_MS)
    empty = ErasedExample(sequence=81, closed_ms=START_MS + COUNT * MINUTE_MS)
    also = [Append(1, b"u", pack(forget)), Append(0, b"", pack(empty)), Append(2, b"", b"\xc1")]
    archive = archived(tmp_path / "archive", also)
    its = cache(archive, until=50)
    others = [n for n in range(50) if at(n).user_id != user]
    assert 0 < len(others) < 50 and learned(its) == ids(*others)
    assert its.about.forgotten == [key_of("user", user)]
    whole = cache(archive, until=2 * COUNT)
    assert whole.about.counts["erased"] == whole.about.counts["unreadable"] == 1


def test_what_was_withdrawn_is_not_learned(tmp_path: Path) -> None:
    user, plain = at(4).user_id, archived(tmp_path / "plain")
    mine = [n for n in range(COUNT) if at(n).user_id == user and n % PARTITIONS == 1]
    since_ms, named = at(mine[1]).closed_ms, at(mine[3])
    for name, requests, gone in (
        ("all", {}, mine[1:]),
        ("one", {named.request_id: [str(named.item_id)]}, mine[3:4]),
        ("other", {named.request_id: ["v77"]}, []),
    ):
        mark = Withdrawn(
            partition=1, offset=9, sequence=81, user_id=user, from_ms=since_ms,
            closed_ms=START_MS + COUNT * MINUTE_MS, requests=requests,
        )  # fmt: skip
        archive = archived(tmp_path / name, [Append(1, b"u", pack(mark))])
        learnable = cache(archive)
        assert learned(learnable) == ids(*(n for n in range(COUNT) if n not in gone))
        assert learnable.about.counts.get("left_out", 0) == len(gone)
        assert learnable.about.forgotten == []
        span = Range(START_MS + 40 * MINUTE_MS)
        assert fingerprint(archive, span) != fingerprint(plain, span)


def remove_day(archive: Path) -> None:
    day = hour_file(archive, 0, 0).parents[1]
    for file in day.glob("hour=*/*.parquet"):
        file.unlink()


def remove_end(archive: Path) -> None:
    for held in files_of(archive, EVENTS):
        held.path.unlink()


@pytest.mark.parametrize(
    ("harm", "reason", "left"),
    [
        (remove_hour, "of partition 1 are missing.*--allow-gaps", 74),
        (remove_day, "has no files.*--allow-gaps", 45),
        (remove_end, "ends at 2023-11-15 02:13:20Z, before --until", COUNT),
    ],
)
def test_what_is_missing_is_refused_unless_it_is_allowed(
    archive: Path, harm: Callable[[Path], None], reason: str, left: int
) -> None:
    harm(archive)
    with pytest.raises(MissingExamples, match=reason):
        cache(archive)
    its = cache(archive, gaps=True)
    assert len(learned(its)) == left and len(its.about.gaps) >= 1


def test_a_range_beside_the_hole_is_not_touched_by_it(archive: Path) -> None:
    remove_hour(archive)
    assert len(learned(cache(archive, until=13))) == 13


def test_a_begin_before_the_archive_an_empty_one_and_a_broken_file_are_refused(archive: Path) -> None:
    with pytest.raises(MissingExamples, match="begins at 2023-11-14 22:00:00Z"):
        cache(archive, from_=-20)
    hour_file(archive, 0, 0).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="can't be read.*from a backup"):
        cache(archive)
    empty = archive.parent / "empty"
    empty.mkdir()
    (empty / "log_id").write_text("x")
    with pytest.raises(MissingExamples, match="holds no examples"):
        cache(empty)


def test_examples_of_another_feature_set_are_refused(archive: Path) -> None:
    other = FeatureSet(FEATURES.schema, "ids")
    span = Range(START_MS + COUNT * MINUTE_MS)
    with pytest.raises(ValueError, match="feature set is .*, expected .*--from"):
        cache_archive(archive, archive.parent / "c", other, DENSE, 0, span)


def test_one_that_does_not_fit_is_left_out_and_counted(tmp_path: Path) -> None:
    some = [at(n) for n in range(COUNT)]
    some[5] = at(5, labels=[7.0, 0.0])
    its = cache(archived(tmp_path / "archive", examples=some))
    assert its.about.counts["left_out"] == 1 and len(learned(its)) == COUNT - 1


def split(path: Path) -> tuple[Path, Path]:
    """Replaces an hour's file by two."""
    table = pq.read_table(path, partitioning=None)
    _, partition, first, last = path.stem.split("-")
    path.unlink()
    middle = (int(first) + int(last)) // 2
    halves = list[Path]()
    for one, two in ((int(first), middle), (middle + 1, int(last))):
        part = table.slice(one - int(first), two - one + 1)
        halves.append(path.with_name(f"part-{partition}-{one}-{two}.parquet"))
        pq.write_table(part, halves[-1])
        seal(halves[-1])
    return halves[0], halves[1]


def test_merging_files_changes_nothing_of_the_fingerprint_and_forgetting_does(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive")
    span = Range(START_MS + COUNT * MINUTE_MS)
    before = fingerprint(archive, span)
    assert fingerprint(archive, span) == before
    split(hour_file(archive, 0, 1))
    assert fingerprint(archive, span) == before
    forget = Forget(partition=1, offset=9, sequence=81, user_id="u4", closed_ms=START_MS)
    other = archived(tmp_path / "other", [Append(1, b"u", pack(forget))])
    assert fingerprint(other, span) != before


def test_files_after_the_range_change_nothing_of_the_fingerprint(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive")
    span = Range(START_MS + 23 * MINUTE_MS)  # within hour 1
    before = fingerprint(archive, span)
    _, later = split(hour_file(archive, 0, 1))
    _, latest = split(later)
    assert fingerprint(archive, span) == before
    latest.unlink()
    assert fingerprint(archive, span) == before, "as before the hour's last file was written"
    hour_file(archive, 0, 0).unlink()
    assert fingerprint(archive, span) != before
