"""The registry: a folder of candidates, each a snapshot with a file that says what it was made from.

    REGISTRY/NAME/candidate.json
    REGISTRY/NAME/EPOCH-STEP/part-00000-of-00001/{arrays.safetensors, manifest.json}
    REGISTRY/NAME/.ancestor/LINE/EPOCH-STEP/…      the snapshot that it started from, if any

So REGISTRY is also a folder of snapshots in which NAME is a line, and whatever loads a snapshot loads a
candidate. One is built beside and renamed: it is there whole or not at all, and nothing ever changes in it.
``candidate.json`` carries the digest of the snapshot's files and one of itself, so neither can be exchanged
alone. What is wrong with a candidate is found here, before anything scores with it.
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

from parameter_server.storage.snapshots import Snapshot, latest, write_part
from parameter_server.storage.wal import sync_folder
from recsys.config.system_config import ModelConfig, digest
from recsys.events.control_records import Live
from recsys.features.feature_set import FeatureSet
from recsys.model.student_model import MAY_DIFFER, shown
from recsys.process.part_process import write_atomically

FILE: Final = "candidate.json"
_ANCESTOR: Final = ".ancestor"
STUDENT: Final = "student"
KINDS: Final = {"offline": "cand", "merged": "merged", STUDENT: "student"}
SERVED: Final = "served"  # teachers of a student that have no name of their own …
ALONG: Final = "along"


class Refused(ValueError):
    """A candidate that must not be used, or made: which one, and why."""


class Parent(msgspec.Struct, frozen=True):
    """A snapshot that a candidate was made from. ``sha256``: see ``sha256_of``."""

    line: str
    epoch: int
    step: int
    sha256: str


class Teacher(msgspec.Struct, frozen=True, kw_only=True):
    """Who taught a student beside the labels.

    ``by``: "served", the live line as it answered (``served``: how many examples by line/epoch); "along", a
    line of the system's model that learned the same stream, and told before it learned; or the name of the
    candidate whose ``snapshot`` was asked. ``share`` of each target is the teacher's, where it said
    something: of ``examples``.
    """

    by: str
    share: float
    examples: int = 0
    served: dict[str, int] = {}
    snapshot: Parent | None = None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate was made from.

    ``from_ms`` ≤ event time < ``until_ms`` is what was learned; ``offsets``, by partition, the next offset of
    ``examples`` that was not learned: where learning goes on. ``log_id`` is empty, and ``offsets`` too, where
    the data weren't of a log. ``ancestor``: the snapshot that it started from; None: from initial values.
    """

    name: str
    kind: str  # "offline" | "merged" | "student"
    feature_set: str  # digest
    model: str  # digest of its ModelConfig
    config: dict[str, Any]  # the ModelConfig: ``plain_config``, and back ``model_config``
    code: str  # the project's version, and the commit where it is known
    made_ms: int
    from_ms: int
    until_ms: int
    log_id: str = ""
    offsets: dict[int, int] = {}
    examples: int = 0
    epochs: float = 0.0  # how often each was learned
    metrics: dict[str, float] = {}
    parents: list[Parent] = []
    ancestor: Parent | None = None
    seed: int = 0
    teacher: Teacher | None = None  # of a student


class _File(msgspec.Struct, frozen=True):
    """``candidate.json``. ``digest`` is the SHA-256 of the rest."""

    provenance: Provenance
    snapshot: Parent
    digest: str


class Registry:
    """Candidates by name. Nothing is cached: another process may add one at any time."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """All candidates, ascending; readable or not."""
        return sorted(f.parent.name for f in self.folder.glob(f"[!.]*/{FILE}"))

    def provenance(self, name: str) -> Provenance:
        """What a candidate was made from. Raises Refused where there is none, or its file is corrupt."""
        return self._file(name).provenance

    def add(
        self,
        provenance: Provenance,
        arrays: Mapping[str, NDArray[Any]],
        meta: Mapping[str, Any],
        step: int,
        ancestor: Path | None = None,
    ) -> Snapshot:
        """Adds a candidate whose ``arrays`` and ``meta`` are as ``Shard.export`` gives them. ``ancestor``:
        the folder of snapshots with the one that it started from, which is kept beside it, for merges.

        Raises Refused for a name that is there, a kind that isn't known, or a number that isn't finite.
        """
        name = provenance.name
        if provenance.kind not in KINDS:
            raise Refused(f"kind is {provenance.kind!r}, expected one of {', '.join(KINDS)}")
        if (self.folder / name).exists():
            raise Refused(f"there is a candidate {name} in {self.folder}: give another name")
        _check_finite(name, arrays, provenance.metrics)
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".making-{uuid.uuid4().hex}"
        try:
            write_part(beside, name, 0, step, 0, 1, arrays, dict(meta) | {"step": step})
            made = latest(beside, name).snapshot
            assert made is not None, "it was written just now"
            file = _sealed(provenance, parent_of(made))
            write_atomically(beside / name / FILE, _pretty(file), mode=0o644)
            if ancestor is not None:
                shutil.copytree(ancestor, beside / name / _ANCESTOR, copy_function=_link_or_copy)
            sync_folder(beside / name)
            try:
                os.rename(beside / name, self.folder / name)
            except OSError as error:
                raise Refused(f"a candidate {name} came meanwhile: {error}") from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_folder(self.folder)
        return self.snapshot(name)

    def snapshot(self, name: str) -> Snapshot:
        """A candidate's snapshot, its digests checked. Raises Refused where a file isn't what was added."""
        file = self._file(name)
        found, reasons = latest(self.folder, name, file.snapshot.epoch, file.snapshot.step)
        if found is None:
            why = "; ".join(reasons) or "there is no snapshot beside it"
            raise Refused(f"candidate {name} is corrupt: {why}; make it again")
        if parent_of(found) != file.snapshot:
            raise Refused(
                f"candidate {name} is corrupt: its snapshot isn't the one that {FILE} names; make it again"
            )
        return found

    def ancestor(self, name: str) -> Snapshot:
        """The snapshot that a candidate started from. Raises Refused where none was kept, or it is
        corrupt."""
        its = self.provenance(name).ancestor
        folder = self.folder / name / _ANCESTOR
        if its is None or not folder.is_dir():
            raise Refused(f"no ancestor was kept of candidate {name}: make it again, with --init")
        found, reasons = latest(folder, its.line, its.epoch, its.step)
        if found is None or parent_of(found) != its:
            why = "; ".join(reasons) or "it isn't the one that the candidate names"
            raise Refused(f"the ancestor of candidate {name} is corrupt: {why}; make it again")
        return found

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
        """A candidate that may be judged: of this feature set and model, of this log (``log_id``; None: of
        any), and made from nothing at or after ``holdout_from_ms``. Raises Refused with the reason.

        ``or_data``: one that was made from a folder of data goes with every log. ``unlearned``: the epoch in
        which a user was last unlearned, that no candidate may bring back. Whether a model of another size may
        be judged is for ``training.candidates.model_size_check`` to say.
        """
        its = self.provenance(name)
        if its.feature_set != features.digest:
            raise Refused(
                f"candidate {name} reads feature set {its.feature_set}, expected {features.digest}: fields "
                "or features changed since; train one on examples of the new set"
            )
        if its.model != digest(model):
            raise Refused(
                f"candidate {name} has another model configuration: {_differences(its, model)}; train one "
                "with this configuration, or start the system with that of the candidate"
            )
        if holdout_from_ms is not None and its.until_ms > holdout_from_ms:
            raise Refused(
                f"candidate {name} learned until {iso(its.until_ms)}, past the beginning of the holdout, "
                f"{iso(holdout_from_ms)}: it has seen the answers; judge it on what came later"
            )
        of_data = or_data and not its.log_id
        if log_id is not None and its.log_id != log_id and not of_data:
            of = f"log {its.log_id!r}" if its.log_id else "a folder of data, not of a log"
            raise Refused(
                f"candidate {name} is of {of}, expected log {log_id!r}: its offsets mean nothing here; train "
                "one from the archive of this log"
            )
        if unlearned is not None:
            self._check_unlearned(its, unlearned)
        return its, self.snapshot(name)

    def _check_unlearned(self, its: Provenance, unlearned: Live) -> None:
        """Whether a candidate, what it started from or who taught it may have learned from a user who was
        unlearned since. Raises Refused, also where one of these can't be asked any more."""
        if not its.log_id:
            return  # its users are those of a folder of data
        ancestor, before = its.ancestor, its.made_ms < unlearned.time_ms
        if ancestor is not None and ancestor.line == unlearned.line:
            before = before or ancestor.epoch < unlearned.epoch
        if before:
            raise Refused(
                f"candidate {its.name}, made {iso(its.made_ms)}, may have learned from a user who was "
                f"unlearned on {iso(unlearned.time_ms)} (epoch {unlearned.epoch} of {unlearned.line}): "
                "train it again"
            )
        taught = its.teacher.snapshot if its.teacher else None
        for other in (ancestor, taught):
            if other is not None and other.line != unlearned.line:
                self._check_unlearned(self.provenance(other.line), unlearned)

    def _file(self, name: str) -> _File:
        path = self.folder / name / FILE
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
        except OSError:
            there = ", ".join(self.names()) or "none"
            raise Refused(f"no candidate {name!r} in {self.folder}; there is {there}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Refused(f"candidate {name} is corrupt: {path}: {error}; make it again") from None
        if _sealed(file.provenance, file.snapshot) != file or file.provenance.name != name:
            raise Refused(f"candidate {name} is corrupt: {path} was changed; make it again")
        return file


def new_name(kind: str, now_ms: int) -> str:
    """A name that no candidate has, e.g. ``cand-20261125-210312-ab12``; it sorts by time within a kind."""
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    return f"{KINDS[kind]}-{moment:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def parent_of(snapshot: Snapshot) -> Parent:
    """A snapshot, as a candidate made from it names it."""
    return Parent(snapshot.line, snapshot.epoch, snapshot.step, sha256_of(snapshot))


def sha256_of(snapshot: Snapshot) -> str:
    """The SHA-256 of the SHA-256s of all its files, in order: of the parts, and of what each builds on."""
    files = [
        link["sha256"] for part in snapshot.manifests for link in (*part.get("chain", []), part)
    ]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def plain_config(model: ModelConfig) -> dict[str, Any]:
    """A model's configuration as ``Provenance.config`` has it: what JSON gives back."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(model))
    return plain


def model_config(provenance: Provenance) -> ModelConfig:
    """The model that a candidate's rows and dense parameters are of: a student's is narrower than the
    system's. Raises Refused where the file has a configuration that isn't the one its digest is of."""
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


def describe_model(provenance: Provenance) -> str:
    """How wide a candidate's model is, in words; empty where its file doesn't say."""
    dim, hidden = (provenance.config.get(name) for name in MAY_DIFFER)
    return "" if dim is None or hidden is None else f"dim {dim}, hidden {shown(hidden)}"


def describe_teacher(teacher: Teacher) -> str:
    """Who taught a student, and how much, e.g. ``main/0, 0.5 of 12345 examples``."""
    who = ", ".join(sorted(teacher.served)) or teacher.by
    return f"{who}, {teacher.share:g} of {teacher.examples} examples"


def iso(time_ms: int) -> str:
    """A time for people, in UTC."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"


def _check_finite(
    name: str, arrays: Mapping[str, NDArray[Any]], metrics: Mapping[str, float]
) -> None:
    if unknown := [metric for metric, value in metrics.items() if not np.isfinite(value)]:
        raise Refused(
            f"candidate {name}: {', '.join(unknown)} isn't finite; leave out what is not known"
        )
    for array, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise Refused(f"candidate {name}: {array} has numbers that aren't finite")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _sealed(provenance: Provenance, snapshot: Parent) -> _File:
    plain = msgspec.to_builtins((provenance, snapshot), str_keys=True)
    if provenance.teacher is None:
        del plain[0]["teacher"]  # files from before there were students have digests without it
    encoded = msgspec.json.encode(plain, order="deterministic")
    return _File(provenance, snapshot, hashlib.sha256(encoded).hexdigest())


def _pretty(file: _File) -> bytes:
    return msgspec.json.format(msgspec.json.encode(file), indent=1)


def _differences(its: Provenance, model: ModelConfig) -> str:
    """Which keys of two model configurations differ, with both values."""
    ours, theirs = plain_config(model), its.config
    differ = [k for k in sorted({*ours, *theirs}) if theirs.get(k) != ours.get(k)]
    return ", ".join(f"model.{k} is {theirs.get(k)!r}, expected {ours.get(k)!r}" for k in differ)
