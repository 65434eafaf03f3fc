"""Ray and Serve without this project: an empty deployment and empty actors, until stdin is closed.

``python -m benchmarks.system.bare_serve ACTORS PORT DASHBOARD_PORT FOLDER`` prints ``ready`` when all of them
run. Ray's files are in FOLDER.
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


class IdleActor:
    """Waits to be called. Its process has this name."""

    def ping(self) -> None: ...


def main(actors: int, port: int, dashboard_port: int, folder: str) -> None:
    """Runs a head of its own, Serve and so many further actors."""
    ray.init(address="local", include_dashboard=True, dashboard_port=dashboard_port,
             object_store_memory=100_000_000, _temp_dir=folder)  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Empty.bind())  # type: ignore[attr-defined]
    actor: Any = ray.remote(num_cpus=0)(IdleActor)
    idle = [actor.remote() for _ in range(actors)]
    ray.get([each.ping.remote() for each in idle])
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


if __name__ == "__main__":
    _actors, _port, _dashboard_port, _folder = sys.argv[1:]
    main(int(_actors), int(_port), int(_dashboard_port), _folder)
