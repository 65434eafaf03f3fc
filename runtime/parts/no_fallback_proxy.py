"""Ray Serve's controller without the proxy that HAProxy asks where there is no replica: ``haproxy_config``
answers 503 instead. Import it in the controller's process only."""

from typing import Any

from ray.serve._private.proxy_state import ProxyStateManager


def _start_none(self: ProxyStateManager, *node: Any) -> None: ...


ProxyStateManager._start_fallback_proxy_if_needed = _start_none  # type: ignore[method-assign,assignment]
