"""Runs an offline job in a folder of its own: its options, its vocabulary, its checkpoints.

    WORK/examples-DIGEST/          the cache of a range of data, for all jobs on it
    WORK/job-DIGEST/{job.json, lock, vocabulary/, taught/, checkpoints/}
    WORK/job-DIGEST/checkpoints/{work,best}/000000-STEP/part-00000-of-00001/…    snapshots

The digest covers everything that decides the result, so the same command resumes in the same folder, and
reports that the candidate exists once it is in the registry.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from numpy.typing import NDArray

from parameter_server.storage.snapshots import latest, prune, write_part
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
from training.offline.loop import Blocks, OfflineLoop, Plan, Report
from training.offline.teacher_labels import (
    TeacherBlocks,
    TeacherConfig,
    prepare_labels,
    teacher_provenance,
)
from training.offline.trainer import Exchange, no_exchange
from training.offline.vocabulary import Vocabulary

FILE: Final = "job.json"
_ANCESTOR: Final = "ancestor"
_VOCABULARY: Final = "vocabulary"
_TAUGHT: Final = "taught"
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
    """Checkpoints in files: snapshots; a damaged one is skipped for the previous one.
    ``writes``: False for workers that only read, as all would write the same."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self._folder, self._writes = folder, writes

    def save(self, kind: str, step: int, arrays: Mapping[str, Any], state: bytes) -> None:
        """Saves a state, replacing one of the same step, and removes old ones."""
        if not self._writes:
            return
        write_part(self._folder, kind, 0, step, 0, 1, arrays, {"state": state.decode()})
        prune(self._folder, kind, _CHECKPOINTS_KEPT)

    def newest(self, kind: str) -> tuple[dict[str, NDArray[Any]], bytes] | None:
        """The newest valid state, if any."""
        snapshot = latest(self._folder, kind).snapshot
        if snapshot is None:
            return None
        return snapshot.read(0), str(snapshot.meta(0)["state"]).encode()


def create_folder(work: Path, job: Job) -> Path:
    """Creates the folder of a job; an existing one keeps its name and time."""
    folder = work / f"job-{job.digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    if job.init:
        _copy_snapshot(job.init, folder / _ANCESTOR)
    if not (folder / FILE).exists():
        write_atomically(folder / FILE, msgspec.json.encode(job), mode=0o644)
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


def is_registered(job: Job) -> bool:
    """Whether a job's candidate is in the registry."""
    return job.name in Registry(job.registry).names()


def run_worker(
    folder: Path,
    rank: int = 0,
    workers: int = 1,
    exchange: Exchange = no_exchange,
    report: Report = lambda state, sums: None,
) -> None:
    """Runs worker ``rank`` of a job, from its newest checkpoint to the end; worker 0 adds the candidate."""
    job = read_job(folder)
    if is_registered(job):
        return
    cache = Cache(Path(job.cache))
    ancestor = _ancestor(folder, job, cache)
    teacher = job.teacher_config
    trainer = build_trainer(
        job.features, job.model, job.lanes, _vocabularies(folder, job, cache, ancestor),
        table_maker(job.tables), ancestor, rank, workers, exchange,
        share=teacher.share if teacher else None,
    )  # fmt: skip
    checkpoints = FileCheckpoints(folder / "checkpoints", writes=rank == 0)
    is_prepared = teacher is not None and teacher.needs_pass
    blocks: Blocks = TeacherBlocks(cache, folder / _TAUGHT) if is_prepared else cache
    loop = OfflineLoop(blocks, trainer, checkpoints, job.plan, report)
    metrics = loop.run()
    if rank:
        return
    arrays, refused, steps = trainer.export(), trainer.refused, loop.state.steps
    meta = export_meta(arrays, steps, refused.rows, refused.dense, job.delta_format)
    provenance = _provenance(job, cache, metrics, loop.state.best, ancestor)
    start = folder / _ANCESTOR if job.init else None
    Registry(job.registry).add(provenance, arrays, meta, steps, start)


def clean_up(folder: Path) -> None:
    """Removes the intermediate files of a finished job, and the cached examples of an archive with them:
    users who are forgotten must not remain in any file."""
    job = read_job(folder)
    for name in ("checkpoints", _VOCABULARY, _ANCESTOR, _TAUGHT, "ray", "groups"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not job.keeps_cache:
        shutil.rmtree(job.cache, ignore_errors=True)


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
    temporary.rename(to / line)


def _ancestor(folder: Path, job: Job, cache: Cache) -> Ancestor | None:
    """The snapshot that a job starts from. Raises Refused if it can't."""
    if job.init is None:
        return None
    dense = build_model(job.features, job.model).dense_size()
    return load_ancestor(folder / _ANCESTOR, job.init[1], job.model, dense, cache.about.forgotten)


def _provenance(
    job: Job, cache: Cache, metrics: Mapping[str, float], epochs: int, ancestor: Ancestor | None
) -> Provenance:
    about = cache.about
    return Provenance(
        name=job.name,
        kind=STUDENT if job.teacher_config else "offline",
        feature_set=job.features.digest,
        model=digest(job.model),
        config=plain_config(job.model),
        code=job.code,
        made_ms=job.made_ms,
        from_ms=about.from_ms,
        until_ms=about.until_ms,
        log_id=about.log_id,
        offsets=about.offsets,
        examples=about.examples,
        epochs=float(epochs),
        metrics=dict(metrics),
        ancestor=ancestor.parent if ancestor else None,
        seed=job.model.seed,
        teacher=teacher_provenance(job.teacher_config, cache) if job.teacher_config else None,
    )


def prepare(folder: Path) -> None:
    """Counts the vocabulary, and computes the teacher's predictions, before workers start."""
    job = read_job(folder)
    cache = Cache(Path(job.cache))
    _vocabularies(folder, job, cache, _ancestor(folder, job, cache))
    if job.teacher_config:
        prepare_labels(
            folder / _TAUGHT, job.teacher_config, job.features, Path(job.registry), cache, job.lanes,
            job.plan.step_examples,
        )  # fmt: skip


def _vocabularies(
    folder: Path, job: Job, cache: Cache, ancestor: Ancestor | None
) -> dict[str, Vocabulary]:
    """Vocabularies by table, stored in the job's folder when they are counted."""
    stored = latest(folder, _VOCABULARY).snapshot
    if stored is not None:
        arrays = stored.read(0)
        names = sorted({name.partition("/")[0] for name in arrays})
        return {n: Vocabulary(arrays[f"{n}/keys"], arrays[f"{n}/used_ms"]) for n in names}
    learner = Learner(build_model(job.features, job.model))
    vocabularies = count_vocabularies(cache, learner, tables_of(job.model), ancestor, job.shards)
    arrays = {
        f"{name}/{column}": array
        for name, keys in vocabularies.items()
        for column, array in (("keys", keys.keys), ("used_ms", keys.used_ms))
    }
    write_part(folder, _VOCABULARY, 0, 0, 0, 1, arrays, {})
    return vocabularies


def cache_key(data: str, features: FeatureSet, join: JoinConfig, allow_gaps: bool) -> str:
    """The digest of a cache: of its source (``data``), and of how it is made."""
    content = (FORMAT, data, features, join, allow_gaps)
    return digest_of(msgspec.json.encode(content, order="deterministic"))


def cached(work: Path, key: str, make: Callable[[Path], Cache]) -> Cache:
    """The cache of a range of data, made if it is missing; of other caches, the newest stay."""
    folder = work / f"examples-{key[:16]}"
    if folder.exists():
        try:
            return Cache(folder)
        except ValueError:
            pass  # made anew, in its place
    made = make(folder)
    others = [f for f in work.glob("examples-*") if f != folder and not f.name.endswith(".partial")]
    for old in sorted(others, key=lambda f: f.stat().st_mtime)[: -(_CACHES_KEPT - 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return made
