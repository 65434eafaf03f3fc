"""``recsys offline``: trains a candidate from an archive or a data set."""

from typing import Any

from runtime.cli.common import JsonOption, exit_on, options_from, show
from runtime.jobs.offline_options import OfflineOptions


@options_from(OfflineOptions)
def offline(json: JsonOption = None, **values: Any) -> None:
    """Trains a candidate, with early stopping on the last day. An interrupted job is continued."""
    from runtime.jobs.offline_job import run
    from runtime.reports.offline_progress import summary_table

    options = OfflineOptions(**values)
    with exit_on(ValueError), exit_on(RuntimeError, status=1):
        result = run(options)
    if options.propose is not None:
        from runtime.cli.candidates import propose_to

        propose_to(options.propose, result["candidate"], options.registry_folder)
    show(result, json, lambda _: [summary_table(result)])
