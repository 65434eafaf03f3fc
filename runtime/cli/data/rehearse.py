"""``recsys rehearse``: a whole system on the later rows of an app's own files, at the files' time."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

from rich.console import Console
from typer import Argument, Option

from recsys.app.data_files import read_data_files
from recsys.app.kept_definition import keep_definition, with_definition
from recsys.client import ApiError
from recsys.config.system_config import Config
from recsys.log.protocol import LogLost, LogUnavailable
from runtime.cli.common import ConfigOption, StateOverride, check_folders, exit_on
from runtime.cli.system import end
from runtime.cli.up import start

_OWN: Final = "rehearsal-"  # beginning of the name of a state folder that is removed at the end


def rehearse(
    files: Annotated[list[Path] | None, Argument(help="Default: those of the definition.")] = None,
    app: Annotated[Path, Option(help="Definition of the app.")] = Path("app.yaml"),
    state: StateOverride = None,
    config: ConfigOption = "laptop",
    speed: Annotated[float, Option(help="Most seconds of the log in a second.")] = 2_000.0,
    from_: Annotated[
        str | None, Option("--from", help="Time of the first row; default: in the newest fifth.")
    ] = None,
    rows: Annotated[int, Option(min=1, help="Most rows of the first kind of label.")] = 5_000,
    read: Annotated[float, Option(min=0, help="Lists a row that are asked for and only read.")] = 0.0,
    learn: Annotated[int | None, Option(min=1, help="Rows before them to train from.")] = None,
    report: Annotated[Path, Option(help="JSON file for the report.")] = Path("rehearsal.json"),
    page: Annotated[Path, Option(help="Page with the curves.")] = Path("rehearsal.html"),
) -> None:
    """Imports the rows before a time, starts all parts, and has the viewers of the later rows ask for lists
    over HTTP and send their rows; compares with a replay and with simple lists."""
    from replay.datasets.mapped_files import MappedFiles
    from replay.predictions import write_report
    from replay.rehearsal.rehearsed_rows import RehearsalOptions
    from replay.replay_report import with_bar  # imports torch
    from runtime.jobs.import_job import rows_to_learn
    from runtime.jobs.rehearsal import LogRehearsal, config_of, first_row_ms
    from runtime.reports.rehearsal_page import page_of
    from runtime.reports.retrieval_tables import print_rehearsal

    with ExitStack() as stack:
        stack.enter_context(exit_on(OSError, ValueError, LogLost, LogUnavailable, ApiError))
        check_folders(report, page)
        if state is None:
            own = TemporaryDirectory(prefix=_OWN, ignore_cleanup_errors=True)
            state = Path(stack.enter_context(own))
        elif state.exists() and any(state.iterdir()):
            raise ValueError(f"{state} isn't empty: name a folder that is, or none (--state)")
        settings, definition, _ = with_definition(config, state, app)
        assert definition is not None
        tables = read_data_files(app)
        paths = files or [app.parent / name for name in tables.names]
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="rows-")))
        dataset = MappedFiles(definition, tables, paths, scratch=scratch)
        from_ms = first_row_ms(dataset, rows, from_)
        options = RehearsalOptions(from_ms, rows, speed, read)
        settings = config_of(settings, from_ms)
        Path(settings.state).mkdir(parents=True, exist_ok=True)
        keep_definition(settings, definition, app)
        result = LogRehearsal(
            definition, settings, dataset, options, learn or rows_to_learn(definition), with_bar,
            partial(_up, app), _down,
        ).run()  # fmt: skip
        write_report(report, result)
        page.write_text(page_of(definition.name, result), "utf-8")
    print_rehearsal(Console(), result)
    Console().print(f"curves: {page}, figures: {report}", highlight=False)


def _up(file: Path, config: Config) -> None:
    if start(config, detach=True, file=file):
        raise ValueError(f"the system in {config.state} didn't start: see what it printed above")


def _down(config: Config) -> None:
    end(Path(config.state), Console())
