"""``Recommender``: a whole recommender in the calling process, with the methods of the HTTP client."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from recsys.app.kept_definition import with_definition
from recsys.client import Client, Receipt
from recsys.config.system_config import Config
from recsys.events.hashing import Id
from recsys.process.part_process import run_folder
from runtime.one_process.one_process import OneProcess, in_one_process
from serving.access.key_files import ADMIN_KEY
from serving.http_app import build_app

_WRITES = ("POST", "DELETE")
_READS = ("/v1/recommend", "/v1/rank")


class Recommender(Client):
    """A recommender that learns from each event, in this process, and keeps everything in a state folder.

    The folder is that of ``recsys up`` and ``recsys serve``: each continues where the others ended. The
    methods are those of ``Client``, so a program that outgrows one process changes one line.
    """

    def __init__(
        self, state: str | Path, app: str | Path | None = None, config: str | Config = "laptop",
        learn_at_once: bool = True,
    ) -> None:  # fmt: skip
        """``app``: the definition's file, by default the one that the state folder keeps. ``config``: a run's
        name or a file. ``learn_at_once``: whether a call returns once all of it is learned; otherwise threads
        learn, as in ``recsys up``.

        Raises AlreadyRuns where another process uses the folder, ValueError for a definition or configuration
        that doesn't fit.
        """
        if isinstance(config, Config):
            definition, file = None, None
        else:
            config, definition, file = with_definition(
                config, Path(state), None if app is None else Path(app)
            )
        config = in_one_process(config)
        self.system = OneProcess(config, definition, file, in_threads=not learn_at_once)
        key = (run_folder(config.state) / ADMIN_KEY).read_text().strip()
        api = httpx.ASGITransport(build_app(self.system.service, lambda: key))
        transport = _InProcess(self.system, api, learn_at_once)
        super().__init__("http://localhost", admin_key=key, timeout_s=60.0, transport=transport)

    def close(self) -> None:
        super().close()
        self.system.close()

    def publish(self, item_id: Id, fields: Mapping[str, Any]) -> Receipt:
        """Publishes an item, or replaces its fields. Raises ApiError."""
        return self.upsert_items({item_id: fields})


class _InProcess(httpx.BaseTransport):
    """Calls the API in the event loop that answers; after a write it lets the system learn."""

    def __init__(self, system: OneProcess, api: httpx.AsyncBaseTransport, learns: bool) -> None:
        self._system, self._api, self._learns = system, api, learns

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._system.run(self._answered(request))
        if self._learns and request.method in _WRITES and request.url.path not in _READS:
            self._system.settle()
        return response

    async def _answered(self, request: httpx.Request) -> httpx.Response:
        sent = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        answer = await self._api.handle_async_request(sent)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())
