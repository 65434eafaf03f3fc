"""The API of a system in one process, over HTTP."""

import uvicorn

from runtime.one_process.one_process import OneProcess
from serving.access.key_files import ADMIN_KEY, SecretFile
from serving.http_app import build_app


class HttpServer:
    """Serves on ``serve.host`` and ``serve.port``, in the event loop that answers."""

    def __init__(self, system: OneProcess) -> None:
        service, config = system.service, system.config
        admin_key = SecretFile(service.callers.folder / ADMIN_KEY)
        self._system = system
        self._server = uvicorn.Server(
            uvicorn.Config(
                build_app(service, lambda: "".join(admin_key())),
                host=config.serve.host, port=config.serve.port, log_config=None, access_log=False,
                lifespan="off", ws="none", server_header=False, timeout_graceful_shutdown=2,
                timeout_keep_alive=max(1, round(config.doors.idle_s)),
                limit_concurrency=config.doors.connections,
            )
        )  # fmt: skip

    def run(self) -> None:
        """Serves until ``stop``. Raises RuntimeError where the port can't be bound."""
        self._system.run(self._server.serve())
        if not self._server.started:
            raise RuntimeError("the port can't be bound: see serve.log")

    def stop(self) -> None:
        self._server.should_exit = True
