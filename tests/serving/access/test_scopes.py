"""Every route of the app needs a scope: a route that nobody listed is closed."""

import pytest

from recsys.config.safety_config import AccessConfig
from serving.access.scopes import ADMIN, PUBLIC, SCOPES, compiled, is_open_to_users
from serving.access.scopes import needed_scope as needed_of_ours
from serving.http_app import build_app
from tests.support.serving.service_harness import COMPAT, World, compat_routes

PLACES = {"user_id": "u", "item_id": "v", "category": "c", "kind": "like", "model": "m", "rest": "r"}


ADDED = compiled(compat_routes().scopes)


def needed_scope(method: str, path: str) -> str:
    return needed_of_ours(method, path, ADDED)


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Method and path of each documented route."""
    world = World(tmp_path_factory.mktemp("world"), compat=COMPAT, access=AccessConfig(mode="keys"))
    paths = build_app(world.service, lambda: "").openapi()["paths"]
    return [
        (method.upper(), path.replace(":path", "").format(**PLACES))
        for path, methods in paths.items()
        for method in methods
    ]


def test_each_route_has_a_scope(routes: list[tuple[str, str]]) -> None:
    assert len(routes) > 50
    unlisted = [route for route in routes if needed_scope(*route) == ADMIN]
    assert not unlisted, "give them scopes in serving/access/scopes.py"
    public = {path for _, path in routes if needed_scope("GET", path) == PUBLIC}
    assert public == {"/healthz", "/readyz", "/health", "/api/health/live", "/api/health/ready"}
    assert {needed_scope(*route) for route in routes} == {*SCOPES, PUBLIC} - {"attribute"}


@pytest.mark.parametrize(
    ("route", "scope"),
    [
        ("POST /v1/recommend", "recommend"), ("GET /v1/recommend", ADMIN),
        ("POST /v1/events", "events"), ("GET /v1/sessions/u/1", "read"), ("GET /metrics", "read"),
        ("HEAD /metrics", "read"), ("DELETE /v1/items/a/b", "catalogue"),
        ("POST /v1/users", "users"), ("DELETE /v1/users/u", "users"), ("POST /v1/users/", "users"),
        ("POST /v1/usersx", ADMIN), ("GET /v1/inspect/users/u", "control"), ("GET /v1/x", ADMIN),
        ("GET /", PUBLIC), ("GET /static/main.js", PUBLIC), ("GET /docs", PUBLIC),
        ("POST /", ADMIN), ("GET //v1/status", ADMIN), ("GET /v1/../v1/status", ADMIN),
        ("GET /api/item/v", "read"), ("GET /api/item/v/feedback", "users"),
        ("GET /api/item/v/feedback/like", "users"), ("PUT /api/item/v/category/c", "catalogue"),
        ("PUT /api/feedback", "events"), ("GET /api/feedback", "users"),
        ("DELETE /api/feedback/u/v", "users"), ("GET /api/user/u", "users"),
        ("POST /feedback", "events"), ("POST /rank/m", "recommend"), ("GET /anything", ADMIN),
        ("GET /healthz/x", ADMIN), ("GET /v1/status\n", ADMIN),
    ],
)  # fmt: skip
def test_scopes_are_as_written(route: str, scope: str) -> None:
    method, _, path = route.partition(" ")
    assert needed_scope(method, path) == scope


def test_routes_of_a_plug_in_that_is_off_are_closed_and_it_cannot_open_ours() -> None:
    assert needed_of_ours("GET", "/api/recommend/bob") == ADMIN
    opening = compiled([("DELETE /v1/users/", PUBLIC), ("GET /shop", PUBLIC)])
    assert needed_of_ours("DELETE", "/v1/users/u", opening) == "users"
    assert needed_of_ours("GET", "/shop", opening) == PUBLIC


def test_user_tokens_open_what_is_of_one_user(routes: list[tuple[str, str]]) -> None:
    opened = {path for _, path in routes if is_open_to_users(path)}
    for_all = {"/v1/popular", "/v1/latest", "/v1/trending", "/v1/items/v/similar"}
    assert opened - {"/v1/preferences"} - for_all == {
        "/v1/recommend", "/v1/rank", "/v1/events", "/v1/status", "/v1/sessions/u",
            "/v1/app",
    }  # fmt: skip
