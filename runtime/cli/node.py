"""``recsys node``: runs a command of Ray, which starts a node or submits a job, in the environment of this
system's nodes."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer
from typer import Argument, Option

from recsys.config.loader import load
from recsys.process.part_process import owned_folder, run_folder
from runtime.cli.common import ConfigOption, StateOverride, exit_on, fail
from runtime.supervision import launch_plan
from runtime.supervision.launch_plan import RAY_TOKEN, make_secret
from runtime.supervision.ray_environment import dashboard_url, haproxy_files, node_environment

_NO_HEAD: Final = 1
_TEMPORARY: Final = "/tmp"  # short: paths of unix sockets may have 107 bytes


def node(
    command: Annotated[list[str], Argument(help="The command: ray start ..., ray job ...")],
    head: Annotated[bool, Option(help="The first node: makes the cluster's token.")] = False,
    config: ConfigOption = "cluster",
    state: StateOverride = None,
) -> None:
    """Runs a command of this system's Ray, such as recsys node -- ray job submit ..., or one that starts a
    node: recsys node --head -- ray start --head ..."""
    settings = load(config)
    folder = Path(settings.state if state is None else state).resolve()
    os.environ["RECSYS__STATE"] = str(folder)
    token = folder / "run" / RAY_TOKEN
    if head:
        owned_folder(folder)
        make_secret(run_folder(folder) / RAY_TOKEN)
    elif not token.exists() and "RAY_AUTH_TOKEN" not in os.environ:
        fail(
            f"state is {folder}, and {token} isn't there: start the head first, by `recsys node --head`, and "
            "mount the folder of its state on this machine too"
        )
        raise typer.Exit(_NO_HEAD)
    with exit_on(PermissionError):  # Ray opens its own folder in it to all users of the machine
        name = f"rs-node-{os.geteuid()}"
        home = owned_folder(Path(_TEMPORARY) / name)
        ray = owned_folder(Path(os.environ.get("TMPDIR") or _TEMPORARY) / name)
    defaults = {"RAY_TMPDIR": str(ray)} | haproxy_files(owned_folder(home / "h"))
    own = node_environment(load(config)) | _job_api(folder)
    os.execvpe(command[0], command, defaults | os.environ | own)


def _job_api(folder: Path) -> dict[str, str]:
    """Address of the dashboard that the system in a folder started, which takes jobs; else nothing."""
    with suppress(FileNotFoundError):
        config, plan = launch_plan.read(folder)
        if plan.owns_ray:
            return {"RAY_API_SERVER_ADDRESS": dashboard_url(config)}
    return {}
