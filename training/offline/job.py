"""An offline job in a folder of its own: what it was asked for, its vocabulary, its checkpoints.

    WORK/examples-DIGEST/          the cache: of a range of data, for all jobs on it
    WORK/job-DIGEST/{job.json, lock, vocabulary/, taught/, checkpoints/}

The digest is of everything that decides the result, so the same command finds the same folder and goes on;
the number of workers isn't in it, for it changes no bit. When the candidate is in the registry, checkpoints
are removed and the job's folder keeps its name: the same command again says that it stands.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from numpy.typing import NDArray

from parameter_server.storage.snapshots import latest, write_part
from recsys.config.system_config import JoinConfig, ModelConfig, digest, tables_of
from recsys.events.hashing import digest_of
from recsys.features.feature_set import FeatureSet
from recsys.model.model import build_model
from recsys.process.part_process import write_atomically
from training.candidates.registry import STUDENT, Provenance, Refused, Registry, plain_config
from training.continual.learner import Learner
from training.offline.cache import FORMAT, Cache
from training.offline.checkpoints import FileCheckpoints
from training.offline.loop import OfflineLoop, Plan, Tell
from training.offline.setup import (
    Ancestor,
    ancestor_at,
    build_trainer,
    count_vocabularies,
    export_meta,
    packed,
    table_maker,
    unpacked,
)
from training.offline.teacher_labels import Teaching, taught_blocks, teacher_of
from training.offline.teacher_labels import prepare as teach
from training.offline.trainer import Exchange, alone

FILE: Final = "job.json"
_ANCESTOR: Final = "ancestor"
_VOCABULARY: Final = "vocabulary"
_TAUGHT: Final = "taught"
_CACHES_KEPT: Final = 2


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a job was asked for. ``init``: folder, line and version ("" for the newest) of the snapshot that
    it starts from; it is copied when the job begins, for a line goes on and drops its old ones. ``teaching``:
    where the candidate is a student."""

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
    teaching: Teaching | None = None
    keeps_cache: bool = False
    name: str = ""
    made_ms: int = 0
    code: str = ""

    @property
    def digest(self) -> str:
        """Of all that decides the result."""
        asked = msgspec.structs.replace(self, name="", made_ms=0, code="", registry="")
        return digest_of(msgspec.json.encode(asked, order="deterministic"))


class Busy(ValueError):
    """The same job is running already."""


def begin(work: Path, job: Job) -> Path:
    """The folder of a job; what was begun before keeps its name and time."""
    folder = work / f"job-{job.digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    if job.init:
        _copy(job.init, folder / _ANCESTOR)
    if not (folder / FILE).exists():
        write_atomically(folder / FILE, msgspec.json.encode(job), mode=0o644)
    return folder


def read_job(folder: Path) -> Job:
    """What a job was asked for."""
    return msgspec.json.decode((folder / FILE).read_bytes(), type=Job)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """For one process at a time; a killed one lets go. Raises Busy."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"{folder} is in use: this job is running already; wait for it") from None
        yield


def stands(job: Job) -> bool:
    """Whether a job's candidate is in the registry already."""
    return job.name in Registry(job.registry).names()


def learn(
    folder: Path,
    rank: int = 0,
    workers: int = 1,
    exchange: Exchange = alone,
    tell: Tell | None = None,
) -> None:
    """Worker ``rank`` of a job, from its newest checkpoint to the end; worker 0 adds the candidate."""
    job = read_job(folder)
    if stands(job):
        return
    cache = Cache(Path(job.cache))
    ancestor = ancestor_of(folder, job, cache)
    vocabularies = unpacked(_vocabulary(folder, job, cache, ancestor))
    make, model, teaching = table_maker(job.tables), job.model, job.teaching
    trainer = build_trainer(
        job.features, model, job.lanes, vocabularies, make, ancestor, rank, workers, exchange,
        share=teaching.share if teaching else None,
    )  # fmt: skip
    checkpoints = FileCheckpoints(folder / "checkpoints", writes=rank == 0)
    blocks = taught_blocks(folder / _TAUGHT, teaching, cache)
    loop = OfflineLoop(blocks, trainer, checkpoints, job.plan, tell or (lambda place, sums: None))
    metrics = loop.run()
    if rank:
        return
    arrays, refused = trainer.export(), trainer.refused
    meta = export_meta(arrays, loop.place.steps, refused.rows, refused.dense, job.delta_format)
    its = provenance_of(job, cache, metrics, loop.place.best, ancestor)
    Registry(job.registry).add(
        its, arrays, meta, loop.place.steps, folder / _ANCESTOR if job.init else None
    )


def tidy(folder: Path) -> None:
    """Removes what a job that is done needs no more, the examples of an archive with it: who is forgotten
    is to be nowhere."""
    job = read_job(folder)
    for name in ("checkpoints", _VOCABULARY, _ANCESTOR, _TAUGHT, "ray", "groups"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not job.keeps_cache:
        shutil.rmtree(job.cache, ignore_errors=True)


def _copy(init: tuple[str, str, str], to: Path) -> None:
    """Copies a snapshot where it isn't yet. Raises Refused where it isn't there, or corrupt."""
    where, line, version = init
    if (to / line).exists():
        return
    epoch, _, step = version.partition("-")
    numbers = (int(epoch), int(step)) if version else (None, None)
    found, reasons = latest(Path(where), line, *numbers)
    if found is None:
        why = "; ".join(reasons) or "there is none"
        raise Refused(f"no snapshot to start from in {where}/{line}: {why}")
    beside = to / f".{line}"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(found.folder, beside / found.folder.name)
    beside.rename(to / line)


def ancestor_of(folder: Path, job: Job, cache: Cache) -> Ancestor | None:
    """The snapshot that a job starts from. Raises Refused where it can't."""
    if job.init is None:
        return None
    dense = build_model(job.features, job.model).dense_size()
    return ancestor_at(folder / _ANCESTOR, job.init[1], job.model, dense, cache.about.forgotten)


def provenance_of(
    job: Job, cache: Cache, metrics: Mapping[str, float], epochs: int, ancestor: Ancestor | None
) -> Provenance:
    """What the candidate says of itself."""
    about = cache.about
    return Provenance(
        name=job.name,
        kind=STUDENT if job.teaching else "offline",
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
        teacher=teacher_of(job.teaching, cache) if job.teaching else None,
    )


def prepare(folder: Path) -> None:
    """Counts the vocabulary once, and asks a student's teacher, before workers start."""
    job = read_job(folder)
    cache = Cache(Path(job.cache))
    _vocabulary(folder, job, cache, ancestor_of(folder, job, cache))
    if job.teaching:
        teach(
            folder / _TAUGHT, job.teaching, job.features, Path(job.registry), cache, job.lanes,
            job.plan.step_examples,
        )  # fmt: skip


def _vocabulary(
    folder: Path, job: Job, cache: Cache, ancestor: Ancestor | None
) -> dict[str, NDArray[Any]]:
    found = latest(folder, _VOCABULARY).snapshot
    if found is not None:
        return found.read(0)
    learner = Learner(build_model(job.features, job.model))
    vocabularies = count_vocabularies(cache, learner, tables_of(job.model), ancestor, job.shards)
    arrays = packed(vocabularies)
    write_part(folder, _VOCABULARY, 0, 0, 0, 1, arrays, {})
    return arrays


def cache_key(data: str, features: FeatureSet, join: JoinConfig, allow_gaps: bool) -> str:
    """The digest of a cache: of what it is made from (``data``), and how."""
    what = (FORMAT, data, features, join, allow_gaps)
    return digest_of(msgspec.json.encode(what, order="deterministic"))


def cached(work: Path, key: str, make: Callable[[Path], Cache]) -> Cache:
    """The cache of a range of data, made where it isn't there; of others, the newest stay."""
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
