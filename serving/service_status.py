"""State of one replica, as the page and ``recsys status`` show it."""

from typing import Any

from serving.service import Service


def status_of(service: Service) -> dict[str, Any]:
    """Version, freshness, rates, lag, and the models that answer some of the users."""
    live, replica = service.live, service.replica
    progress, followers = live.progress, live.followers
    line, epoch, step = replica.version
    now_ms = service.now_ms()
    return {
        "version": {"line": line, "epoch": epoch, "step": step},
        "features": {"logged": service.features.digest, "read": replica.model.features.digest},
        "time_ms": now_ms,
        "age_ms": now_ms - replica.step_time_ms if replica.step_time_ms else None,
        "items": replica.catalogue.living.count, "ready": service.ready,
        "events_per_s": round(progress.events.per_s(), 2),
        "examples_per_s": round(progress.examples.per_s(), 2),
        **progress.freshness.percentiles(live.timer_ms()), "lag": followers.lag,
        "catching_up": live.folds.catching_up, "gaps": followers.weights.line.gaps,
        "impressions_dropped": service.writer.dropped,
        "canary": _canary(service), "arms": _arms(service),
    }  # fmt: skip


def _canary(service: Service) -> dict[str, Any] | None:
    """Candidate that answers a share of the users, if there is one."""
    canary = service.canary
    variant, state = canary.variant, canary.state
    if variant is None or state is None:
        return None
    return {
        "line": variant.line, "share": state.share, "step": variant.replica.step,
        "ready": variant.followers.ready, "answered": canary.answered[variant.line],
    }  # fmt: skip


def _arms(service: Service) -> dict[str, dict[str, Any]]:
    """Model lines that answer arms of experiments, by name."""
    canary, arms = service.canary, service.live.control.arms
    variants = {line: canary.variants.get(line) for line in arms}
    return {
        line: {
            "step": 0 if variant is None else variant.replica.step,
            "ready": variant is not None and variant.servable, "answered": canary.answered[line],
        }
        for line, variant in variants.items()
    }  # fmt: skip
