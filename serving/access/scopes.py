"""Scopes of API keys, and the one that each route needs; an unlisted route needs the admin key. Pure."""

import re
from collections.abc import Iterable
from itertools import chain
from typing import Final

RECOMMEND, EVENTS, CATALOGUE, USERS, CONTROL, READ, ATTRIBUTE = SCOPES = (
    "recommend", "events", "catalogue", "users", "control", "read", "attribute",
)  # fmt: skip
ADMIN: Final = "admin"  # needed by unlisted routes: no key has it but the admin key
PUBLIC: Final = ""
USER_SCOPES: Final = frozenset((RECOMMEND, EVENTS, READ))  # of a user token, for its user
OPEN_SCOPES: Final = USER_SCOPES  # of a call without a key in access.mode open
AUDITED: Final = frozenset((CATALOGUE, USERS, CONTROL, ADMIN))

_EXACT: Final = {
    "POST /v1/recommend": RECOMMEND, "POST /v1/rank": RECOMMEND, "POST /v1/events": EVENTS,
    "POST /v1/preferences": EVENTS, "GET /v1/status": READ, "GET /v1/app": READ, "GET /metrics": READ,
    "GET /healthz": PUBLIC, "GET /readyz": PUBLIC, "GET /": PUBLIC,
}  # fmt: skip
Rules = list[tuple[re.Pattern[str], str]]  # the first match decides


def compiled(rules: Iterable[tuple[str, str]]) -> Rules:
    """Rules of patterns of "METHOD /path"."""
    return [(re.compile(pattern), scope) for pattern, scope in rules]


_RULES: Final = compiled(
    (
        (r"GET /v1/sessions/", READ),
        (r"GET /v1/(popular|latest|trending|items/.+/similar)$", RECOMMEND),
        (r"(POST|DELETE) /v1/items(/|$)", CATALOGUE),
        (r"(POST|DELETE) /v1/users(/|$)", USERS),
        (r"GET /v1/inspect/", CONTROL),
        (r"GET /(static/|static-offline-docs/|docs|redoc|openapi\.json$|favicon\.ico$|-/)", PUBLIC),
    )
)
_USER_ROUTES: Final = re.compile(
    r"/v1/(recommend|rank|popular|latest|trending|items/.+/similar|events|preferences|status|app|sessions/.*)",
    re.DOTALL,
)
_PAGES: Final = re.compile(r"/$|/static/|/docs|/redoc")
HEALTH: Final = frozenset(("/healthz", "/readyz"))


def needed_scope(method: str, path: str, added: Rules | None = None) -> str:
    """Scope that a route needs: PUBLIC for none, ADMIN for an unlisted one. ``added``: rules after ours."""
    route = f"{'GET' if method == 'HEAD' else method} {path}"
    if (exact := _EXACT.get(route)) is not None:
        return exact
    rules = chain(_RULES, added or ())
    return next((scope for pattern, scope in rules if pattern.match(route)), ADMIN)


def is_open_to_users(path: str) -> bool:
    """Whether a user token opens a path, for its user alone."""
    return _USER_ROUTES.fullmatch(path) is not None


def is_page(path: str) -> bool:
    """Whether a path is a page or a file of one, which other pages may link to."""
    return _PAGES.match(path) is not None
