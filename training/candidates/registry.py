"""The registry: a folder of candidates, each a snapshot with a provenance file.

    REGISTRY/NAME/candidate.json
    REGISTRY/NAME/EPOCH-STEP/part-00000-of-00001/{arrays.safetensors, manifest.json}
    REGISTRY/NAME/.ancestor/LINE/EPOCH-STEP/…      the snapshot that it started from, if any

So NAME is a line in a folder of snapshots. A candidate is built in a temporary folder, renamed, and never
changed. ``candidate.json`` carries the digest of the snapshot's files and one of itself.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from experiments.promotion.epoch_model import size_difference
from parameter_server.storage.part_files import Joined
from parameter_server.storage.snapshots import Snapshot, latest, write_part
from parameter_server.storage.wal import sync_folder
from recsys.config.system_config import ModelConfig, digest
from recsys.events.control_records import Live, ModelSize
from recsys.features.feature_set import FeatureSet
from recsys.model.student_model import OF_EPOCH, shown
from recsys.process.part_process import write_atomically

FILE: Final = "candidate.json"
_ANCESTOR: Final = ".ancestor"
STUDENT: Final = "student"
KINDS: Final = {"offline": "cand", "merged": "merged", STUDENT: "student"}
SERVED: Final = "served"  # teachers of a student that have no name of their own …
ALONG: Final = "along"
_REMEDY: Final = "train one with this configuration, or start the system with that of the candidate"


class Refused(ValueError):
    """A candidate that must not be used, or made: names it, with the reason."""


class SnapshotRef(msgspec.Struct, frozen=True):
    """Reference to a snapshot that a candidate was made from. ``sha256``: see ``sha256_of``."""

    line: str
    epoch: int
    step: int
    sha256: str


class Teacher(msgspec.Struct, frozen=True, kw_only=True):
    """The teacher of a student. ``by``: "served", the live line as it answered (``served``: number of
    examples by line/epoch); "along", a line of the system's model that learned the same stream; or the name
    of a candidate, with its ``snapshot``. ``share``: weight of the teacher in each of the ``examples``
    targets it has a prediction for."""

    by: str
    share: float
    examples: int = 0
    served: dict[str, int] = {}
    snapshot: SnapshotRef | None = None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Provenance of a candidate. Examples with ``from_ms`` ≤ event time < ``until_ms`` were learned;
    ``offsets``, by partition, are the next of ``examples`` to learn. ``log_id`` and ``offsets`` are empty if
    the data weren't of a log. ``ancestor``: the snapshot that it started from, if any."""

    name: str
    kind: str  # "offline" | "merged" | "student"
    feature_set: str  # digest
    model: str  # digest of its ModelConfig
    config: dict[str, Any]  # the ModelConfig, by ``plain_config``; back by ``model_config``
    code: str  # the project's version, and the commit if known
    made_ms: int
    from_ms: int
    until_ms: int
    log_id: str = ""
    offsets: dict[int, int] = {}
    examples: int = 0
    epochs: float = 0.0  # passes over the examples
    metrics: dict[str, float] = {}
    parents: list[SnapshotRef] = []
    ancestor: SnapshotRef | None = None
    seed: int = 0
    teacher: Teacher | None = None  # of a student


class _File(msgspec.Struct, frozen=True):
    """``candidate.json``. ``digest`` is the SHA-256 of the rest."""

    provenance: Provenance
    snapshot: SnapshotRef
    digest: str


class Registry:
    """Candidates by name. Nothing is cached: another process may add one at any time."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Names of all candidates, ascending; readable or not."""
        return sorted(f.parent.name for f in self.folder.glob(f"[!.]*/{FILE}"))

    def provenance(self, name: str) -> Provenance:
        """Raises Refused for an unknown candidate or a corrupt file."""
        return self._file(name).provenance

    def add(
        self, provenance: Provenance, arrays: Mapping[str, NDArray[Any]] | Joined,
        meta: Mapping[str, Any], step: int, ancestor: Path | None = None,
    ) -> Snapshot:  # fmt: skip
        """Adds a candidate, ``arrays`` and ``meta`` as from ``Shard.export``. ``ancestor``: the folder of
        snapshots with the one that it started from, to be stored with it. Raises Refused for a name in use,
        an unknown kind, or a number that isn't finite."""
        name = provenance.name
        if provenance.kind not in KINDS:
            raise Refused(f"kind is {provenance.kind!r}, expected one of {', '.join(KINDS)}")
        if (self.folder / name).exists():
            raise Refused(f"there is a candidate {name} in {self.folder}: give another name")
        _check_finite(name, arrays, provenance.metrics)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".making-{name}"
        shutil.rmtree(temporary, ignore_errors=True)  # of a job that was killed
        try:
            write_part(temporary, name, 0, step, 0, 1, arrays, dict(meta) | {"step": step})
            made = latest(temporary, name).snapshot
            assert made is not None, "it was written just now"
            file = msgspec.json.encode(_sealed(provenance, reference_to(made)))
            indented = msgspec.json.format(file, indent=1)
            write_atomically(temporary / name / FILE, indented, mode=0o644, sync=True)
            if ancestor is not None:
                shutil.copytree(ancestor, temporary / name / _ANCESTOR, copy_function=_link_or_copy)
            sync_folder(temporary / name)
            try:
                os.rename(temporary / name, self.folder / name)
            except OSError as error:
                raise Refused(f"a candidate {name} came meanwhile: {error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(self.folder)
        return self.snapshot(name)

    def snapshot(self, name: str) -> Snapshot:
        """A candidate's snapshot, its digests checked. Raises Refused if a file was changed."""
        return _verified(self.folder, self._file(name).snapshot, f"candidate {name}")

    def ancestor(self, name: str) -> Snapshot:
        """The snapshot that a candidate started from. Raises Refused if none was stored, or it is corrupt."""
        expected = self.provenance(name).ancestor
        folder = self.folder / name / _ANCESTOR
        if expected is None or not folder.is_dir():
            raise Refused(f"no ancestor was kept of candidate {name}: make it again, with --init")
        return _verified(folder, expected, f"the ancestor of candidate {name}")

    def check(
        self,
        name: str,
        features: FeatureSet,
        model: ModelConfig,
        *,
        holdout_from_ms: int | None,
        log_id: str | None,
        or_data: bool = False,
        unlearned: Live | None = None,
    ) -> tuple[Provenance, Snapshot]:
        """Checks that a candidate may be judged: of this feature set and model, of this log (None: any), and
        trained on nothing at or after ``holdout_from_ms``. Raises Refused with the reason. ``or_data``:
        accept one made from a folder of data with any log. ``unlearned``: the epoch in which a user was last
        unlearned, whom no candidate may bring back. For models of another size see ``model_size_of``."""
        provenance = self.provenance(name)
        if provenance.feature_set != features.digest:
            raise Refused(
                f"candidate {name} reads feature set {provenance.feature_set}, expected {features.digest}: "
                "fields or features changed since; train one on examples of the new set"
            )
        if provenance.model != digest(model):
            differences = _differences(provenance, model)
            raise Refused(f"candidate {name} has another model configuration: {differences}; {_REMEDY}")
        if holdout_from_ms is not None and provenance.until_ms > holdout_from_ms:
            raise Refused(
                f"candidate {name} learned until {iso(provenance.until_ms)}, past the beginning of the "
                f"holdout, {iso(holdout_from_ms)}: it has seen the answers; judge it on what came later"
            )
        of_data = or_data and not provenance.log_id
        if log_id is not None and provenance.log_id != log_id and not of_data:
            source = provenance.log_id
            of = f"log {source!r}" if source else "a folder of data, not of a log"
            raise Refused(
                f"candidate {name} is of {of}, expected log {log_id!r}: its offsets mean nothing here; train "
                "one from the archive of this log"
            )
        if unlearned is not None:
            self._check_unlearned(provenance, unlearned)
        return provenance, self.snapshot(name)

    def _check_unlearned(self, provenance: Provenance, unlearned: Live) -> None:
        """Raises Refused if a candidate, its ancestor or its teacher may have learned from a user who was
        unlearned since, or if one of these is gone."""
        if not provenance.log_id:
            return  # its users are those of a folder of data
        ancestor, before = provenance.ancestor, provenance.made_ms < unlearned.time_ms
        if ancestor is not None and ancestor.line == unlearned.line:
            before = before or ancestor.epoch < unlearned.epoch
        if before:
            raise Refused(
                f"candidate {provenance.name}, made {iso(provenance.made_ms)}, may have learned from a user "
                f"who was unlearned on {iso(unlearned.time_ms)} (epoch {unlearned.epoch} of "
                f"{unlearned.line}): train it again"
            )
        teacher = provenance.teacher.snapshot if provenance.teacher else None
        for source in (ancestor, teacher):
            if source is not None and source.line != unlearned.line:
                self._check_unlearned(self.provenance(source.line), unlearned)

    def _file(self, name: str) -> _File:
        path = self.folder / name / FILE
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
        except OSError:
            names = ", ".join(self.names()) or "none"
            raise Refused(f"no candidate {name!r} in {self.folder}; there is {names}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Refused(f"candidate {name} is corrupt: {path}: {error}; make it again") from None
        if _sealed(file.provenance, file.snapshot) != file or file.provenance.name != name:
            raise Refused(f"candidate {name} is corrupt: {path} was changed; make it again")
        return file


def _verified(folder: Path, expected: SnapshotRef, whose: str) -> Snapshot:
    snapshot, reasons = latest(folder, expected.line, expected.epoch, expected.step)
    if snapshot is None:
        why = "; ".join(reasons) or "there is no snapshot beside it"
    elif reference_to(snapshot) != expected:
        why = f"its snapshot isn't the one that {FILE} names"
    else:
        return snapshot
    raise Refused(f"{whose} is corrupt: {why}; make it again")


def new_name(kind: str, now_ms: int) -> str:
    """A unique name, e.g. ``cand-20261125-210312-ab12``; names of a kind sort by time."""
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    return f"{KINDS[kind]}-{moment:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def reference_to(snapshot: Snapshot) -> SnapshotRef:
    return SnapshotRef(snapshot.line, snapshot.epoch, snapshot.step, sha256_of(snapshot))


def sha256_of(snapshot: Snapshot) -> str:
    """SHA-256 of the SHA-256s of all files in order: of the parts, and of those each builds on."""
    parts = snapshot.manifests
    files = [link["sha256"] for part in parts for link in (*part.get("chain", []), part)]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def plain_config(model: ModelConfig) -> dict[str, Any]:
    """A model's configuration as ``Provenance.config`` has it: decoded from JSON."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(model))
    return plain


def model_config(provenance: Provenance) -> ModelConfig:
    """Configuration of a candidate's model. Raises Refused if it doesn't match its digest."""
    try:
        model = msgspec.convert(provenance.config, ModelConfig)
    except (msgspec.ValidationError, ValueError) as error:
        raise Refused(
            f"candidate {provenance.name} has a model configuration that can't be read: {error}; make it "
            "again"
        ) from None
    if digest(model) != provenance.model:
        raise Refused(
            f"candidate {provenance.name} names model {provenance.model}, and its configuration is of "
            f"{digest(model)}: it was made by another version; make it again"
        )
    return model


def model_size_of(provenance: Provenance, configured: ModelConfig) -> ModelSize | None:
    """Size of a candidate's model, to be proposed with it; None if its model is the configured one. Raises
    Refused if it differs in more than its size, with every value and the expected one."""
    try:
        return size_difference(configured, model_config(provenance))
    except (ValueError, msgspec.ValidationError) as error:
        raise Refused(
            f"candidate {provenance.name} has another model configuration: {error}; {_REMEDY}"
        ) from error


def describe_model(provenance: Provenance) -> str:
    """Ranker and width of a candidate's model, in words; empty if its file doesn't say."""
    dim, hidden, ranker = (provenance.config.get(name) for name in OF_EPOCH)
    words = "" if dim is None or hidden is None else f"dim {dim}, hidden {shown(hidden)}"
    return f"{ranker}, {words}" if ranker else words


def describe_teacher(teacher: Teacher) -> str:
    """A student's teacher and its weight, e.g. ``main/0, 0.5 of 12345 examples``."""
    who = ", ".join(sorted(teacher.served)) or teacher.by
    return f"{who}, {teacher.share:g} of {teacher.examples} examples"


def iso(time_ms: int) -> str:
    """Formats a time for people, in UTC."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"


def _check_finite(
    name: str, arrays: Mapping[str, NDArray[Any]] | Joined, metrics: Mapping[str, float]
) -> None:
    if infinite := [metric for metric, value in metrics.items() if not np.isfinite(value)]:
        raise Refused(f"candidate {name}: {', '.join(infinite)} isn't finite; leave out what is not known")
    for array, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise Refused(f"candidate {name}: {array} has numbers that aren't finite")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _sealed(provenance: Provenance, snapshot: SnapshotRef) -> _File:
    plain = msgspec.to_builtins((provenance, snapshot), str_keys=True)
    if provenance.teacher is None:
        del plain[0]["teacher"]  # the digests of files from before there were students lack it
    encoded = msgspec.json.encode(plain, order="deterministic")
    return _File(provenance, snapshot, hashlib.sha256(encoded).hexdigest())


def _differences(provenance: Provenance, model: ModelConfig) -> str:
    """Keys in which two model configurations differ, with both values."""
    expected, actual = plain_config(model), provenance.config
    differ = [k for k in sorted({*expected, *actual}) if actual.get(k) != expected.get(k)]
    texts = (f"model.{k} is {actual.get(k)!r}, expected {expected.get(k)!r}" for k in differ)
    return ", ".join(texts)
