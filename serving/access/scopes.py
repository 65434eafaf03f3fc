"""Scopes of API keys, and the one that each route needs; an unlisted route needs the admin key. Pure."""

import re
from typing import Final

RECOMMEND, EVENTS, CATALOGUE, USERS, CONTROL, READ, ATTRIBUTE = SCOPES = (
    "recommend", "events", "catalogue", "users", "control", "read", "attribute",
)  # fmt: skip
ADMIN: Final = "admin"  # needed by unlisted routes: no key has it but the admin key
PUBLIC: Final = ""
USER_SCOPES: Final = frozenset((RECOMMEND, EVENTS, READ))  # of a user token, for its user
AUDITED: Final = frozenset((CATALOGUE, USERS, CONTROL, ADMIN))

_EXACT: Final = {
    "POST /v1/recommend": RECOMMEND,
    "POST /v1/events": EVENTS,
    "POST /v1/preferences": EVENTS,
    "GET /v1/status": READ,
    "GET /metrics": READ,
    "GET /healthz": PUBLIC,
    "GET /readyz": PUBLIC,
    "GET /": PUBLIC,
}
# First match decides; the later ones are of Gorse and Metarank.
_RULES: Final = [
    (re.compile(pattern), scope)
    for pattern, scope in (
        (r"GET /v1/sessions/", READ),
        (r"(POST|DELETE) /v1/items(/|$)", CATALOGUE),
        (r"(POST|DELETE) /v1/users(/|$)", USERS),
        (r"GET /v1/inspect/", CONTROL),
        (r"GET /(static/|static-offline-docs/|docs|redoc|openapi\.json$|favicon\.ico$|-/)", PUBLIC),
        (r"GET /(health|api/health/(live|ready))$", PUBLIC),
        (r"GET /api/(recommend/|latest|popular)|POST /api/session/recommend", RECOMMEND),
        (r"GET /api/item/[^/]*/neighbors", RECOMMEND),
        (r"(POST|PUT) /api/feedback$", EVENTS),
        (r"[A-Z]+ /api/(users?|feedback|item/[^/]*/feedback)(/|$)", USERS),
        (r"GET /api/items?(/|$)", READ),
        (r"[A-Z]+ /api/items?(/|$)", CATALOGUE),
        (r"POST /feedback$", EVENTS),
        (r"POST /(rank|recommend)/", RECOMMEND),
        (r"POST /(train/|inference/|flush$)", CONTROL),
    )
]
_USER_ROUTES: Final = re.compile(
    r"/v1/(recommend|events|preferences|status|sessions/.*)", re.DOTALL
)
_PAGES: Final = re.compile(r"/$|/static/|/docs|/redoc")
HEALTH: Final = frozenset(
    ("/healthz", "/readyz", "/health", "/api/health/live", "/api/health/ready")
)


def needed_scope(method: str, path: str) -> str:
    """Scope that a route needs: PUBLIC for none, ADMIN for an unlisted one."""
    route = f"{'GET' if method == 'HEAD' else method} {path}"
    if (exact := _EXACT.get(route)) is not None:
        return exact
    return next((scope for pattern, scope in _RULES if pattern.match(route)), ADMIN)


def is_open_to_users(path: str) -> bool:
    """Whether a user token opens a path, for its user alone."""
    return _USER_ROUTES.fullmatch(path) is not None


def is_page(path: str) -> bool:
    """Whether a path is a page or a file of one, which other pages may link to."""
    return _PAGES.match(path) is not None
