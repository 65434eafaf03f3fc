"""Ray and Serve without this project: an empty deployment and empty actors, until stdin is closed.

``python -m benchmarks.system.bare_serve ACTORS PORT DASHBOARD_PORT`` prints a line when all of them run.
"""

import sys
from typing import Any

import ray
from ray import serve


@serve.deployment
class Empty:
    """Answers every request with a word."""

    def __call__(self) -> str:
        return "empty"


class Idle:
    """Waits to be called."""

    def ping(self) -> None: ...


def main(actors: int, port: int, dashboard_port: int) -> None:
    """Runs a head of its own, Serve and so many further actors."""
    ray.init(address="local", include_dashboard=True, dashboard_port=dashboard_port,
             object_store_memory=100_000_000)  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Empty.bind())  # type: ignore[attr-defined]
    actor: Any = ray.remote(num_cpus=0)(Idle)
    idle = [actor.remote() for _ in range(actors)]
    ray.get([each.ping.remote() for each in idle])
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
