"""Offline training of a candidate, from an archive or a data set, in this process or on a Ray cluster.

See docs/how-to/offline.md. The same options find an earlier, unfinished job and continue it.
"""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import typer
from msgspec import UNSET

from recsys.clock import machine_ms
from recsys.config.loader import load
from recsys.config.system_config import Config, ModelConfig
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FILE, feature_set
from recsys.model.model import build_model
from recsys.model.ranker import ranker_of
from recsys.model.student_model import student_model
from replay.datasets.open_dataset import open_dataset
from replay.offline_examples import cache_dataset
from replay.replay_report import with_bar
from replay.replay_run import ReplayOptions, config_for
from runtime.jobs.offline_options import OfflineOptions
from runtime.jobs.time_option import parse_time
from runtime.reports import offline_progress
from runtime.supervision import launch_plan
from runtime.supervision.processes import STATE
from runtime.supervision.ray_environment import job_environment
from training.candidates.registry import Registry, iso, new_name
from training.lines.control import live_epoch, model_now
from training.lines.line import MAIN
from training.offline import archive as archives
from training.offline import job as jobs
from training.offline.cache import Cache
from training.offline.distill import SHARE, checked_share
from training.offline.loop import Plan
from training.offline.teacher_labels import choose_teacher

_BUILT_IN: Final = "built-in"  # of --ranker
_WORK: Final = ".work"  # within the registry, which all nodes reach


Examples = tuple[FeatureSet, str, Callable[[Path], Cache]]  # with the cache's key and maker


def run(options: OfflineOptions) -> dict[str, Any]:
    """Trains the candidate; returns its summary. Raises ValueError for bad input."""
    _check(options)
    started = time.monotonic()
    work = options.registry_folder.resolve() / _WORK
    with ExitStack() as reading:
        folder = _begin(options, work, reading)
        job = jobs.read_job(folder)
        with jobs.locked(folder):
            existed = jobs.is_registered(job)
            if not existed:
                typer.echo(offline_progress.describe_job(job, options.workers), err=True)
                if options.workers:
                    _train_on_ray(folder, options)
                else:
                    jobs.run_worker(folder, report=offline_progress.ProgressLine())
                if not jobs.is_registered(job):
                    raise RuntimeError(f"the job ended without a candidate; see {folder}/ray")
            reading.close()
            jobs.clean_up(folder)
    seconds = time.monotonic() - started
    return offline_progress.summary(options.registry_folder, job.name, seconds, existed)


def _check(options: OfflineOptions) -> None:
    if options.cpus_per_worker <= 0:
        raise ValueError(f"--cpus-per-worker is {options.cpus_per_worker}, expected more than 0")
    if options.tables not in ("torchrec", "own"):
        raise ValueError(f"--tables is {options.tables!r}, expected 'torchrec' or 'own'")
    if not options.student and (options.teacher or options.teacher_share is not None):
        raise ValueError(
            "--teacher and --teacher-share are given without --student: name the model to teach, e.g. "
            "--student dim=8,hidden=64x32"
        )
    if options.student and options.ranker:
        raise ValueError("--student and --ranker are given together: a student has its teacher's ranker")
    if not options.data_folder.is_dir():
        raise ValueError(f"--data is {options.data_folder}, and there is no such folder")
    if options.propose is not None:
        try:
            launch_plan.read(options.propose)  # fails now, not after hours of training
        except FileNotFoundError as error:
            raise ValueError(f"--propose is {options.propose}, and no system was started there") from error


def _begin(options: OfflineOptions, work: Path, reading: ExitStack) -> Path:
    """Caches the examples and creates the job's folder, or finds the folder of the same job. ``reading``
    keeps the cache from jobs that end meanwhile."""
    config, data = _config(options), options.data_folder
    model, share = _student(options, config.model)
    of_archive = archives.is_archive(data)
    examples = _archive_examples if of_archive else _dataset_examples
    features, key, make = examples(options, config)
    build_model(features, replace(model, features=features.kind))
    with jobs.locked(work / "examples"):
        reading.enter_context(jobs.reading(jobs.cache_folder(work, key)))
        cache = jobs.cached(work, key, make)
    model, teacher_config = replace(model, features=features.kind), None
    registry = options.registry_folder
    if options.student:
        system = replace(config.model, features=features.kind)
        teacher_config = choose_teacher(options.teacher, share, system, features, registry, cache)
    now_ms = machine_ms()
    job = jobs.Job(
        registry=str(registry.resolve()),
        cache=str(cache.folder),
        features=features,
        model=model,
        lanes=config.step.lanes,
        plan=Plan(
            last=cache.about.last, epochs=options.epochs, step_examples=options.step_examples,
            checkpoint_every=options.checkpoint_every, seed=config.model.seed,
        ),
        shards=config.parameter_server.shards,
        delta_format=config.parameter_server.delta_format,
        tables=options.tables,
        init=_init(options),
        teacher_config=teacher_config,
        keeps_cache=not of_archive,
        name=new_name("student" if teacher_config else "offline", now_ms),
        made_ms=now_ms,
        code=code_version(),
    )  # fmt: skip
    for gap in cache.about.gaps:
        typer.secho(f"recsys: learning without: {gap}", fg="yellow", err=True)
    return jobs.create_folder(work, job)


def _student(options: OfflineOptions, system: ModelConfig) -> tuple[ModelConfig, float]:
    """The model to train, a student's, the system's or one with a plug-in, and the teacher's weight.

    Raises ValueError for invalid options, before hours of examples are read.
    """
    if not options.student:
        ranker = UNSET if options.ranker == _BUILT_IN else options.ranker or system.ranker
        ranker_of(ranker)
        return replace(system, ranker=ranker), 0.0
    if options.teacher:
        Registry(options.registry_folder).provenance(options.teacher)
    share = SHARE if options.teacher_share is None else options.teacher_share
    return student_model(options.student, system), checked_share(share)


def _config(options: OfflineOptions) -> Config:
    """The state folder's configuration, or the one named by ``--config``."""
    if options.state is None:
        return load(options.config)
    try:
        return launch_plan.read(options.state)[0]
    except FileNotFoundError:  # copied without its run/ folder, or never started
        return replace(load(options.config), state=str(options.state))


def _archive_examples(options: OfflineOptions, config: Config) -> Examples:
    data = options.data_folder
    # A filled archive (`recsys backfill`) has its set inside, that of a system beside it.
    folder = data if (data / FILE).exists() else data.resolve().parent
    if folder == data or (options.state is None and (folder / FILE).exists()):
        config = replace(config, state=str(folder))
    features = feature_set(config)
    with launch_plan.open_log_if_any(config.state) as log:
        if log is not None:  # of the model that a candidate competes with
            features = model_now(log, config, features, MAIN, live_epoch(log))[1]
    if options.features:
        features = replace(features, kind=options.features)
    span = archives.Range(_until_ms(options), parse_time(options.from_, 0.0))
    horizon_ms = int(config.join.horizon_s * 1000)
    source = archives.fingerprint(data, span)
    key = jobs.cache_key(source, features, config.join, options.allow_gaps)
    dense = FeatureBuilder(features).dense_width

    def make(folder: Path) -> Cache:
        with launch_plan.open_log_if_any(config.state) as log:
            return archives.cache_archive(
                data, folder, features, dense, horizon_ms, span, options.allow_gaps, log
            )

    return features, key, make


def _until_ms(options: OfflineOptions) -> int:
    """End of the time range.

    ``now`` is the newest archived event, and is printed: later the same command has another end, and begins
    another job.
    """
    if options.until != "now":
        until_ms = parse_time(options.until, 0.0)
        assert until_ms is not None
        return until_ms
    until_ms = archives.newest(options.data_folder)
    typer.echo(f"learns all archived events, until {iso(until_ms)}", err=True)
    return until_ms


def _dataset_examples(options: OfflineOptions, config: Config) -> Examples:
    data = options.data_folder
    if options.until == "now":
        raise ValueError(f"--until is now, and {data} is a data set: give its last time")
    dataset = open_dataset(data)
    if options.state is not None and not options.features:
        features = feature_set(config)
    else:
        features = FeatureSet(dataset.schema, options.features or "all", config.sessions.history)
    zone = dataset.utc_offset_h
    until_ms, from_ms = parse_time(options.until, zone), parse_time(options.from_, zone)
    assert until_ms is not None
    played = config_for(dataset, ReplayOptions(features.kind), config)
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(data.glob("*"))]
    source = repr((data.resolve().as_posix(), files, from_ms, until_ms))
    key = jobs.cache_key(source, features, played.join, False)

    def make(folder: Path) -> Cache:
        return cache_dataset(dataset, folder, features, played, from_ms, until_ms, with_bar)

    return features, key, make


def _init(options: OfflineOptions) -> tuple[str, str, str] | None:
    """Folder, line and version of the snapshot to start from."""
    registry = options.registry_folder
    if options.init is None:
        return None
    if options.init in Registry(registry).names():
        return str(registry.resolve()), options.init, ""
    path = Path(options.init).resolve()
    if not path.is_dir():
        names = ", ".join(Registry(registry).names()) or "none"
        raise ValueError(
            f"--init is {options.init!r}, neither a candidate in {registry} (there is {names}) nor a "
            "folder of a line's snapshots"
        )
    if any(path.glob("part-*")):
        return str(path.parent.parent), path.parent.name, path.name
    return str(path.parent), path.name, ""


def _train_on_ray(folder: Path, options: OfflineOptions) -> None:
    """Trains on the Ray of the system whose job this is, else on the cluster in RAY_ADDRESS; without either,
    starts Ray. A job inherits the state folder of its system."""
    with suppress(FileNotFoundError):  # nodes whose system was never started
        if state := os.environ.get(STATE):
            os.environ.update(job_environment(*launch_plan.read(state)))
    starts_ray = not os.environ.get("RAY_ADDRESS")
    if starts_ray:  # read when Ray is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    settings: dict[str, Any] = {"log_to_driver": False}
    if starts_ray:
        settings |= {
            "address": "local",  # never another Ray of this machine
            "num_cpus": max(1, round(options.workers * options.cpus_per_worker)),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
        }
    connects = not ray.is_initialized()
    if connects:
        ray.init(**settings)
    try:
        from training.offline.ray_job import PROGRESS, OfflineProgress, fit

        with offline_progress.ProgressFileFollower(folder / PROGRESS, OfflineProgress):
            fit(folder, options.workers, options.cpus_per_worker)
    finally:
        if connects:
            ray.shutdown()


def code_version() -> str:
    """Version of the package, with the commit in a git checkout."""
    try:
        package = version("recsys-swipe")
    except PackageNotFoundError:
        package = "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return f"{package}+{done.stdout.strip()}"
    return package
