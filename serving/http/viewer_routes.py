"""Routes of viewers besides lists: events, wishes, sessions, the status."""

import asyncio

from fastapi import FastAPI, Request, Response

from recsys.app.kept_definition import kept_app
from serving.access.access_layer import caller_of
from serving.access.scopes import ATTRIBUTE
from serving.http import api_models as models
from serving.http.problems import PROBLEMS
from serving.http.results import checked_id, results_out
from serving.http.serving_metrics import ServingMetrics
from serving.http.strict_json import json_response
from serving.ingestion.write_api import OverQuota
from serving.service import Service
from serving.service_status import status_of
from serving.sessions.session_view import view_of


def add_viewer_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    """Adds the routes to an app."""

    @app.post("/v1/events", status_code=202, response_model=models.EventsOut, responses=PROBLEMS)
    async def events(request: Request, body: models.EventsIn) -> Response:
        """Engagements of viewers. The answer comes after the commit; without an answer send them again:
        repeats of an `event_id` count once."""
        batch = await service.write_api.append_events(body.events, caller_of(request.scope))
        metrics.count_batch(batch)
        OverQuota.check(batch)
        return json_response(results_out(batch.results, batch.unproven.total()), 202)

    @app.post("/v1/preferences", status_code=202, response_model=models.EventsOut, responses=PROBLEMS)
    async def preferences(request: Request, body: models.PreferencesIn) -> Response:
        """Wishes of viewers: `block` or `mute` items with a value in a field, or see `less` of them; `none`
        takes a wish back. They hold for the next list, in every source. Muted items are shown where a caller
        names them."""
        caller = caller_of(request.scope)
        if caller.key_id and caller.user_id is None:
            caller.check_scope(ATTRIBUTE, "setting preferences without a user token")
        for preference in body.preferences:
            service.callers.check_preference(caller, preference.user_id)
        wishes = [preference.model_dump(exclude_none=True) for preference in body.preferences]
        return json_response(results_out(await service.write_api.put_preferences(wishes)), 202)

    @app.get("/v1/sessions/{user_id:path}", response_model=models.SessionOut, responses=PROBLEMS)
    async def session(request: Request, user_id: str) -> Response:
        """Current session of a user: topics and recent items."""
        caller_of(request.scope).check_user(user_id)
        session = await service.sessions.of(checked_id(user_id, "user_id"))
        weights = service.live.control.policies.resolve(user_id).config.weights
        learned = service.live.progress.freshness.learned_views
        return json_response(view_of(session, service.replica.catalogue, weights, learned))

    @app.get("/v1/app", response_model=models.AppOut, responses=PROBLEMS)
    async def shown() -> Response:
        """The parts of the app's definition that a page needs: kinds of engagement, and the fields to show of
        items."""
        return json_response((await asyncio.to_thread(kept_app, service.config)).shown_as)

    @app.get("/v1/status", response_model=models.StatusOut, responses=PROBLEMS)
    async def status() -> Response:
        """Version that answers, how fresh it is, and how fast."""
        return json_response(status_of(service) | metrics.answers())
