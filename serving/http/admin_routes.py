"""Routes of operators: items, users, inspection."""

from typing import Any

from fastapi import FastAPI, HTTPException, Response

from serving import request as values
from serving.http import api_models as models
from serving.http.problems import PROBLEMS, UNKNOWN_ITEM
from serving.http.results import checked_id, results_out
from serving.http.strict_json import json_response
from serving.ingestion.event_validation import ACCEPTED, Result
from serving.replica import inspection
from serving.service import Service


def add_admin_routes(app: FastAPI, service: Service) -> None:
    """Adds the routes to an app."""
    read: dict[str, Any] = {"responses": PROBLEMS}
    write = read | {"status_code": 202, "response_model": models.EventsOut}

    @app.post("/v1/items", **write)
    async def put_items(body: models.ItemsIn) -> Response:
        """Publishes or changes items."""
        items = [item.model_dump(exclude_none=True) for item in body.items]
        return json_response(results_out(await service.write_api.put_items(items)), 202)

    @app.post("/v1/users", **write)
    async def put_users(body: models.UsersIn) -> Response:
        """Sets users' profiles."""
        users = [user.model_dump(exclude_none=True) for user in body.users]
        return json_response(results_out(await service.write_api.put_users(users)), 202)

    @app.delete("/v1/items/{item_id:path}", **write)
    async def remove_item(item_id: str) -> Response:
        """Removes an item: it is no longer recommended."""
        await service.write_api.remove_item(checked_id(item_id, "item_id"))
        return json_response(results_out([Result(0, ACCEPTED)]), 202)

    @app.delete("/v1/users/{user_id:path}", **write)
    async def erase_user(user_id: str) -> Response:
        """Erases a user: the session as soon as the fold reads the request, mostly within a second; the rows
        with the next steps; log and archive an hour or more later. The user's contribution to other users'
        item counters and to the shared weights stays; see docs/reference/api.md."""
        return await erase(models.EraseIn(user_id=checked_id(user_id, "user_id")))

    @app.post("/v1/users/erase", **write)
    async def erase(body: models.EraseIn) -> Response:
        """Erases a user as DELETE does, also one whose id no path can name, such as one with a newline."""
        await service.write_api.erase_user(body.user_id)
        return json_response(results_out([Result(0, ACCEPTED)]), 202)

    @app.get("/v1/inspect/items/{item_id:path}", responses=PROBLEMS | UNKNOWN_ITEM)
    async def inspect_item(item_id: str) -> Response:
        """State of an item in this replica: fields, counters, vector, popularity, nearest items."""
        state = inspection.item(service.replica, checked_id(item_id, "item_id"), service.now_ms())
        if state is None:
            raise HTTPException(404, f"item_id is {item_id!r}, and no such item was ever published")
        return json_response(state)

    @app.get("/v1/inspect/users/{user_id:path}", **read)
    async def inspect_user(user_id: str) -> Response:
        """State of a user, and a list as the feed would serve it now, with explanations. Nothing is logged:
        it counts neither as an impression nor as a list."""
        name = checked_id(user_id, "user_id")
        session = await service.sessions.of(name)
        request = values.Request(name, n=inspection.SHOWN, explain=True)
        policy = service.live.control.policies.resolve(name, request.surface)
        answer = await service.recommend_unlogged(request, session, counts=False)
        listed = {"items": answer.items, "stamp": answer.stamp, "degraded": answer.degraded}
        user = inspection.user(service.replica, session, policy)
        return json_response(user | {"answer": listed})
