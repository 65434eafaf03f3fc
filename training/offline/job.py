"""Runs an offline job in a folder of its own: its options, its vocabulary, its checkpoints.

    WORK/examples-DIGEST/          the cache of a range of data, for all jobs on it
    WORK/job-DIGEST/{job.json, lock, taught/, parts/}
    WORK/job-DIGEST/parts/{work,best}/000000-NUMBER/part-00000-of-00004/…    checkpoints: snapshots

The digest covers everything that decides the result, so the same command resumes in the same folder, and
reports that the candidate exists once it is in the registry.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from parameter_server.storage.part_files import Joined
from parameter_server.storage.snapshots import Snapshot, latest, prune, write_part
from recsys.config.system_config import JoinConfig, ModelConfig, digest, tables_of
from recsys.events.hashing import digest_of
from recsys.features.feature_set import FeatureSet
from recsys.model.model import build_model
from recsys.process.part_process import write_atomically
from training.candidates.registry import STUDENT, Provenance, Refused, Registry, plain_config
from training.continual.learner import Learner
from training.offline.cache import FORMAT, Cache
from training.offline.initial_state import (
    Ancestor,
    build_trainer,
    count_vocabularies,
    export_meta,
    load_ancestor,
    table_maker,
)
from training.offline.loop import SEEN, WORK, Arrays, Blocks, OfflineLoop, Parts, Plan, Report
from training.offline.sharding import ALONE, Exchange, Sharding
from training.offline.teacher_labels import TeacherBlocks, TeacherConfig, prepare_labels, teacher_provenance

FILE: Final = "job.json"
_ANCESTOR: Final = "ancestor"
_TAUGHT: Final = "taught"
_CHECKPOINTS: Final = "parts"
_OLD: Final = ("checkpoints", "vocabulary")  # of jobs that began when one worker held all rows
_CACHES_KEPT: Final = 2
_CHECKPOINTS_KEPT: Final = 2


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a job. ``init``: folder, line and version ("" for the newest) of the snapshot that it starts
    from; it is copied when the job begins, since a line drops its old ones. ``teacher_config``: the teacher,
    if the candidate is a student."""

    registry: str
    cache: str
    features: FeatureSet
    model: ModelConfig
    lanes: int
    plan: Plan
    shards: int = 1
    delta_format: str = "fp32"
    tables: str = "torchrec"
    init: tuple[str, str, str] | None = None
    teacher_config: TeacherConfig | None = msgspec.field(default=None, name="teaching")
    keeps_cache: bool = False
    name: str = ""
    made_ms: int = 0
    code: str = ""

    @property
    def digest(self) -> str:
        """Digest of everything that decides the result."""
        options = msgspec.structs.replace(self, name="", made_ms=0, code="", registry="")
        return digest_of(msgspec.json.encode(options, order="deterministic"))


class Busy(ValueError):
    """The same job is running already."""


class FileCheckpoints:
    """One worker's parts of checkpoints in files: snapshots; a damaged one is skipped for the one before."""

    def __init__(self, folder: Path, sharding: Sharding = ALONE) -> None:
        self._folder, self._sharding = folder, sharding

    def save(self, kind: str, number: int, parts: Parts, state: bytes) -> None:
        """Saves parts, replacing those of the same number. Worker 0 removes old checkpoints."""
        for part, arrays in parts:
            place = (kind, 0, number, part, self._sharding.parts)
            write_part(self._folder, *place, arrays, {"state": state.decode()})
        if self._sharding.rank == 0:
            prune(self._folder, kind, _CHECKPOINTS_KEPT)

    def newest(self, kind: str) -> tuple[Iterator[Arrays], bytes] | None:
        """The newest valid state, if any."""
        snapshot = latest(self._folder, kind).snapshot
        if snapshot is None:
            return None
        return self._arrays(snapshot), str(snapshot.meta(0)["state"]).encode()

    def _arrays(self, snapshot: Snapshot) -> Iterator[Arrays]:
        yield snapshot.read(0, lambda name: not name.startswith("table/"))
        for part in self._sharding.own:
            yield snapshot.read(part, lambda name: name.startswith("table/"))


def create_folder(work: Path, job: Job) -> Path:
    """Creates the folder of a job; an existing one keeps its name and time."""
    folder = work / f"job-{job.digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    if job.init:
        _copy_snapshot(job.init, folder / _ANCESTOR)
    try:
        read_job(folder)
    except (FileNotFoundError, msgspec.DecodeError):
        write_atomically(folder / FILE, msgspec.json.encode(job), mode=0o644, sync=True)
    return folder


def read_job(folder: Path) -> Job:
    return msgspec.json.decode((folder / FILE).read_bytes(), type=Job)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for one process; the lock of a killed one is released. Raises Busy."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"{folder} is in use: this job is running already; wait for it") from None
        yield


@contextmanager
def reading(cache: Path) -> Iterator[None]:
    """Keeps a cache from being removed by jobs that end meanwhile. On a network file system this holds
    between machines if its locks do."""
    with _lock_of(cache).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _lock_of(cache: Path) -> Path:
    return cache.with_name(f".{cache.name}.lock")


def _remove_cache(cache: Path) -> None:
    """Removes a cache, unless a job reads it."""
    with _lock_of(cache).open("a+") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(cache, ignore_errors=True)


def is_registered(job: Job) -> bool:
    """Whether a job's candidate is in the registry."""
    return job.name in Registry(job.registry).names()


def run_worker(
    folder: Path,
    rank: int = 0,
    workers: int = 1,
    exchange: Exchange = ALONE.exchange,
    report: Report = lambda state, sums: None,
) -> None:
    """Runs worker ``rank`` of a job, from its newest checkpoint to the end; worker 0 adds the candidate.
    Workers count the vocabulary, and compute a teacher's predictions, together."""
    job = read_job(folder)
    if is_registered(job):
        return
    cache, sharding = Cache(Path(job.cache)), Sharding(job.lanes, rank, workers, exchange)
    blocks: Blocks = cache
    teacher = job.teacher_config
    if teacher is not None and teacher.needs_pass:
        prepare_labels(
            folder / _TAUGHT, teacher, job.features, Path(job.registry), cache, sharding,
            job.plan.step_examples,
        )  # fmt: skip
        blocks = TeacherBlocks(cache, folder / _TAUGHT)
    ancestor = _ancestor(folder, job, cache, sharding)
    network = Learner(build_model(job.features, job.model))
    vocabularies = count_vocabularies(
        cache, network, tables_of(job.model), ancestor, job.shards, sharding=sharding
    )
    trainer = build_trainer(
        job.features, job.model, sharding, vocabularies, table_maker(job.tables), ancestor,
        share=teacher.share if teacher else None,
    )  # fmt: skip
    checkpoints = FileCheckpoints(folder / _CHECKPOINTS, sharding)
    loop = OfflineLoop(blocks, trainer, checkpoints, job.plan, report)
    metrics, refused = loop.run(), trainer.all_refused()
    if rank:
        return
    final = latest(folder / _CHECKPOINTS, WORK).snapshot  # of all workers, as they have ended
    if final is None or final.step != loop.state.number:
        raise RuntimeError(f"the last checkpoint in {folder} is damaged: start the job again")
    provenance = _provenance(job, cache, metrics, loop.state.best, ancestor)
    start = folder / _ANCESTOR if job.init else None
    meta = export_meta(final, refused.rows, refused.dense, job.delta_format)
    paths = [path for part in range(final.parts) for path in final.files(part)]
    arrays = Joined(paths, lambda name: name not in SEEN)
    Registry(job.registry).add(provenance, arrays, meta, loop.state.steps, start)


def clean_up(folder: Path) -> None:
    """Removes the intermediate files of a finished job, and the cached examples of an archive with the last
    job that reads them: users who are forgotten must not remain in any file."""
    job = read_job(folder)
    for name in (_CHECKPOINTS, _ANCESTOR, _TAUGHT, "ray", "groups", *_OLD):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not job.keeps_cache:
        _remove_cache(Path(job.cache))


def _copy_snapshot(init: tuple[str, str, str], to: Path) -> None:
    """Copies a snapshot unless it was copied before. Raises Refused if it is missing or corrupt."""
    source, line, version = init
    if (to / line).exists():
        return
    epoch, _, step = version.partition("-")
    numbers = (int(epoch), int(step)) if version else (None, None)
    snapshot, reasons = latest(Path(source), line, *numbers)
    if snapshot is None:
        why = "; ".join(reasons) or "there is none"
        raise Refused(f"no snapshot to start from in {source}/{line}: {why}")
    temporary = to / f".{line}"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(snapshot.folder, temporary / snapshot.folder.name)
    os.sync()  # it isn't copied again: the line has dropped it by then
    temporary.rename(to / line)


def _ancestor(folder: Path, job: Job, cache: Cache, sharding: Sharding) -> Ancestor | None:
    """The snapshot that a job starts from, with this worker's rows. Raises Refused if it can't."""
    if job.init is None:
        return None
    dense = build_model(job.features, job.model).dense_size()
    forgotten = cache.about.forgotten
    return load_ancestor(folder / _ANCESTOR, job.init[1], job.model, dense, forgotten, sharding)


def _provenance(
    job: Job, cache: Cache, metrics: Mapping[str, float], epochs: int, ancestor: Ancestor | None
) -> Provenance:
    about = cache.about
    return Provenance(
        name=job.name, kind=STUDENT if job.teacher_config else "offline",
        feature_set=job.features.digest, model=digest(job.model), config=plain_config(job.model),
        code=job.code, made_ms=job.made_ms, from_ms=about.from_ms, until_ms=about.until_ms,
        log_id=about.log_id, offsets=about.offsets, examples=about.examples, epochs=float(epochs),
        metrics=dict(metrics), ancestor=ancestor.parent if ancestor else None, seed=job.model.seed,
        teacher=teacher_provenance(job.teacher_config, cache) if job.teacher_config else None,
    )  # fmt: skip


def cache_key(data: str, features: FeatureSet, join: JoinConfig, allow_gaps: bool) -> str:
    """The digest of a cache: of its source (``data``), and of how it is made."""
    content = (FORMAT, data, features, join, allow_gaps)
    return digest_of(msgspec.json.encode(content, order="deterministic"))


def cache_folder(work: Path, key: str) -> Path:
    return work / f"examples-{key[:16]}"


def cached(work: Path, key: str, make: Callable[[Path], Cache]) -> Cache:
    """The cache of a range of data, made if it is missing; of others, the newest and those read stay. Call it
    with ``work/examples`` locked: unfinished caches are of jobs that were killed."""
    folder = cache_folder(work, key)
    if folder.exists():
        try:
            return Cache(folder)
        except ValueError:
            pass  # made anew, in its place
    for partial in work.glob("examples-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    made = make(folder)
    others = [f for f in work.glob("examples-*") if f != folder]
    for old in sorted(others, key=lambda f: f.stat().st_mtime)[: -(_CACHES_KEPT - 1)]:
        _remove_cache(old)
    return made
