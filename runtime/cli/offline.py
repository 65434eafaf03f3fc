"""`recsys offline`: trains a candidate from an archive or a data set, in this process or on a Ray cluster.

What it does is told in docs/how-to/offline.md. The same command finds what it began before, and goes on.
"""

import subprocess
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

from recsys.config.system_config import Config, ModelConfig
from runtime.cli.offline_options import (
    NOW,
    AllowGapsOption,
    Asked,
    CheckpointEveryOption,
    ConfigOption,
    CpusPerWorkerOption,
    DataOption,
    EpochsOption,
    FeaturesOption,
    FromOption,
    InitOption,
    JsonOption,
    ProposeOption,
    RegistryOption,
    StateOption,
    StepExamplesOption,
    StudentOption,
    TablesOption,
    TeacherOption,
    TeacherShareOption,
    UntilOption,
    WorkersOption,
)
from runtime.reports.offline_progress import Followed, Told, begun, print_done, summary

_WORK: Final = ".work"  # within the registry, which all nodes reach


def offline(
    data: DataOption = None,
    until: UntilOption = NOW,
    registry: RegistryOption = None,
    from_: FromOption = None,
    epochs: EpochsOption = 3,
    workers: WorkersOption = 1,
    cpus_per_worker: CpusPerWorkerOption = 1.0,
    features: FeaturesOption = "",
    state: StateOption = None,
    config: ConfigOption = "laptop",
    init: InitOption = None,
    step_examples: StepExamplesOption = 64,
    checkpoint_every: CheckpointEveryOption = 500,
    tables: TablesOption = "torchrec",
    allow_gaps: AllowGapsOption = False,
    propose: ProposeOption = None,
    student: StudentOption = "",
    teacher: TeacherOption = "",
    teacher_share: TeacherShareOption = None,
    json: JsonOption = False,
) -> None:
    """Trains a candidate: several epochs where they help, as the last day says. A killed one goes on."""
    if data is None and state is None:
        raise typer.BadParameter("give --state FOLDER, of a system, or --data FOLDER")
    asked = Asked(
        data or state / "archive", registry or (state or Path()) / "registry",  # type: ignore[operator]
        until, from_, epochs, workers, cpus_per_worker, features, state, config, init, step_examples,
        checkpoint_every, tables, allow_gaps, propose, student, teacher, teacher_share,
    )  # fmt: skip
    try:
        done = run(asked)
    except (ValueError, RuntimeError) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error
    if propose is not None:
        from runtime.cli.candidates import propose_to

        propose_to(propose, done["candidate"], asked.registry)
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(done), indent=2))
    else:
        print_done(done)


def run(asked: Asked) -> dict[str, Any]:
    """Trains what was asked for; returns the closing table. Raises ValueError for bad input."""
    from training.offline import job as jobs

    _check(asked)
    started = time.monotonic()
    work = asked.registry.resolve() / _WORK
    folder = _begun(asked, work)
    with jobs.locked(folder):
        job = jobs.read_job(folder)
        stood = jobs.stands(job)
        if not stood:
            jobs.prepare(folder)
            typer.echo(begun(job, asked.workers), err=True)
            if asked.workers:
                _on_ray(folder, asked)
            else:
                jobs.learn(folder, tell=Told())
            if not jobs.stands(job):
                raise RuntimeError(f"the job ended without a candidate; see {folder}/ray")
        jobs.tidy(folder)
    return summary(asked.registry, job.name, time.monotonic() - started, stood)


def _check(asked: Asked) -> None:
    for name, value in (("epochs", asked.epochs), ("step-examples", asked.step_examples),
                        ("checkpoint-every", asked.checkpoint_every)):  # fmt: skip
        if value < 1:
            raise ValueError(f"--{name} is {value}, expected 1 or more")
    if asked.workers < 0 or asked.cpus <= 0:
        raise ValueError(
            f"--workers is {asked.workers} and --cpus-per-worker {asked.cpus}, expected 0 or more and more "
            "than 0"
        )
    if asked.tables not in ("torchrec", "own"):
        raise ValueError(f"--tables is {asked.tables!r}, expected 'torchrec' or 'own'")
    if not asked.student and (asked.teacher or asked.teacher_share is not None):
        raise ValueError(
            "--teacher and --teacher-share are given without --student: say which model it teaches, e.g. "
            "--student dim=8,hidden=64x32"
        )
    if not asked.data.is_dir():
        raise ValueError(f"--data is {asked.data}, and there is no such folder")
    if asked.propose is not None:
        from runtime.supervision import launch_plan as plans

        try:
            plans.read(asked.propose)  # not found out after hours
        except FileNotFoundError as error:
            raise ValueError(
                f"--propose is {asked.propose}, and no system was started there"
            ) from error


def _begun(asked: Asked, work: Path) -> Path:
    """The job's folder, its examples cached."""
    from training.candidates.registry import new_name
    from training.offline import job as jobs
    from training.offline.archive import is_archive
    from training.offline.loop import Plan
    from training.offline.teacher_labels import chosen

    config = _config(asked)
    model, share = _student(asked, config.model)
    prepare = _from_archive if is_archive(asked.data) else _from_dataset
    features, cache, keeps = prepare(asked, config, work)
    model, teaching = replace(model, features=features.kind), None
    if asked.student:
        system = replace(config.model, features=features.kind)
        teaching = chosen(asked.teacher, share, system, features, asked.registry, cache)
    now_ms = int(time.time() * 1000)
    job = jobs.Job(
        registry=str(asked.registry.resolve()),
        cache=str(cache.folder),
        features=features,
        model=model,
        lanes=config.step.lanes,
        plan=Plan(
            last=cache.about.last, epochs=asked.epochs, step_examples=asked.step_examples,
            checkpoint_every=asked.checkpoint_every, seed=config.model.seed,
        ),
        shards=config.parameter_server.shards,
        delta_format=config.parameter_server.delta_format,
        tables=asked.tables,
        init=_init(asked),
        teaching=teaching,
        keeps_cache=keeps,
        name=new_name("student" if teaching else "offline", now_ms),
        made_ms=now_ms,
        code=code(),
    )  # fmt: skip
    for gap in cache.about.gaps:
        typer.secho(f"recsys: learning without: {gap}", fg="yellow", err=True)
    return jobs.begin(work, job)


def _student(asked: Asked, system: ModelConfig) -> tuple[ModelConfig, float]:
    """The model that learns, a student's or the system's, and the teacher's share: found out before hours of
    examples are read. Raises ValueError for what can't be."""
    from recsys.model.student_model import student_model
    from training.candidates.registry import Registry
    from training.offline.distill import SHARE, checked_share

    if not asked.student:
        return system, 0.0
    if asked.teacher:
        Registry(asked.registry).provenance(asked.teacher)
    share = SHARE if asked.teacher_share is None else asked.teacher_share
    return student_model(asked.student, system), checked_share(share)


def _config(asked: Asked) -> Config:
    """The configuration of a system's state folder, or the one that was named."""
    from recsys.config.loader import load
    from runtime.supervision import launch_plan as plans

    if asked.state is not None:
        try:
            return plans.read(asked.state)[0]
        except FileNotFoundError:
            pass  # copied without its run/, or never started: the configuration says
        return replace(load(asked.config), state=str(asked.state))
    return load(asked.config)


def _from_archive(asked: Asked, config: Config, work: Path) -> tuple[Any, Any, bool]:
    from recsys.features.feature_builder import FeatureBuilder
    from recsys.features.feature_set_file import FILE, feature_set
    from runtime.cli.replay import parse_time
    from training.offline import archive as archives
    from training.offline import job as jobs

    beside = asked.data.resolve().parent
    if asked.state is None and (beside / FILE).exists():
        config = replace(config, state=str(beside))
    features = feature_set(config)
    if asked.features:
        features = replace(features, kind=asked.features)
    span = archives.Range(_until_ms(asked), parse_time(asked.from_, 0.0))
    horizon_ms = int(config.join.horizon_s * 1000)
    key = jobs.cache_key(
        archives.fingerprint(asked.data, span), features, config.join, asked.allow_gaps
    )
    dense = FeatureBuilder(features).dense_width

    def make(folder: Path) -> Any:
        return archives.cache_archive(
            asked.data, folder, features, dense, horizon_ms, span, asked.allow_gaps
        )

    with jobs.locked(work / "examples"):
        return features, jobs.cached(work, key, make), False


def _until_ms(asked: Asked) -> int:
    """The end of the range. ``now`` is as far as the archive of a running system has come, and is told: the
    same command later means another end, and begins another job."""
    from runtime.cli.replay import parse_time
    from training.candidates.registry import iso
    from training.offline.archive import newest

    if asked.until != NOW:
        until_ms = parse_time(asked.until, 0.0)
        assert until_ms is not None
        return until_ms
    until_ms = newest(asked.data)
    typer.echo(f"learns what is archived, until {iso(until_ms)}", err=True)
    return until_ms


def _from_dataset(asked: Asked, config: Config, work: Path) -> tuple[Any, Any, bool]:
    from recsys.features.feature_set import FeatureSet
    from recsys.features.feature_set_file import feature_set
    from replay.datasets.open_dataset import open_dataset
    from replay.offline_examples import cache_dataset
    from replay.replay_report import with_bar
    from replay.replay_run import ReplayOptions, config_for
    from runtime.cli.replay import parse_time
    from training.offline import job as jobs

    if asked.until == NOW:
        raise ValueError(f"--until is now, and {asked.data} is a data set: give its last time")
    dataset = open_dataset(asked.data)
    kind = asked.features or ("all" if asked.state is None else feature_set(config).kind)
    features = FeatureSet(dataset.schema, kind, config.sessions.history)
    if asked.state is not None and not asked.features:
        features = feature_set(config)
    zone = dataset.utc_offset_h
    until_ms, from_ms = parse_time(asked.until, zone), parse_time(asked.from_, zone)
    assert until_ms is not None
    played = config_for(dataset, ReplayOptions(features.kind), config)
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(asked.data.glob("*"))]
    key = jobs.cache_key(repr((asked.data.resolve().as_posix(), files, from_ms, until_ms)),
                           features, played.join, False)  # fmt: skip

    def make(folder: Path) -> Any:
        return cache_dataset(dataset, folder, features, played, from_ms, until_ms, with_bar)

    with jobs.locked(work / "examples"):
        return features, jobs.cached(work, key, make), True


def _init(asked: Asked) -> tuple[str, str, str] | None:
    """Folder, line and version of the snapshot to start from."""
    from training.candidates.registry import Registry

    if asked.init is None:
        return None
    if asked.init in Registry(asked.registry).names():
        return str(asked.registry.resolve()), asked.init, ""
    path = Path(asked.init).resolve()
    if not path.is_dir():
        there = ", ".join(Registry(asked.registry).names()) or "none"
        raise ValueError(
            f"--init is {asked.init!r}, neither a candidate in {asked.registry} (there is {there}) nor a "
            "folder of a line's snapshots"
        )
    if any(path.glob("part-*")):
        return str(path.parent.parent), path.parent.name, path.name
    return str(path.parent), path.name, ""


def _on_ray(folder: Path, asked: Asked) -> None:
    """On the cluster that the environment names, as `ray job submit` has it; else on a Ray of our own."""
    import os

    ours = not os.environ.get("RAY_ADDRESS")
    if ours:  # read when Ray is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    options: dict[str, Any] = {"log_to_driver": False}
    if ours:
        options |= {
            "num_cpus": max(1, round(asked.workers * asked.cpus)), "include_dashboard": False,
            "_node_ip_address": "127.0.0.1", "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
        }  # fmt: skip
    owns = not ray.is_initialized()
    if owns:
        ray.init(**options)
    try:
        from training.offline.ray_job import PROGRESS, OfflineProgress, fit

        with Followed(folder / PROGRESS, OfflineProgress):
            fit(folder, asked.workers, asked.cpus)
    finally:
        if owns:
            ray.shutdown()


def code() -> str:
    """The version, and the commit where this is a checkout."""
    try:
        ours = version("recsys-swipe")
    except PackageNotFoundError:
        ours = "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ours
    return f"{ours}+{done.stdout.strip()}" if done.returncode == 0 else ours
