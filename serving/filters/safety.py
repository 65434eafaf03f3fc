"""Items that safety rules close to this viewer (``safety.rules``)."""

from recsys.config.safety_config import SafetyRule
from recsys.events.field_schema import spellings_of
from recsys.events.hashing import key_of
from serving.filters.filter import Filter
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Closed


class Safety(Filter):
    """Items of the safety rules that hold for this viewer."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Closed | None:
        rules = [rule for rule in replica.config.safety.rules if _applies(rule, query)]
        if not rules:
            return None
        first, *others = (replica.values.items(rule.field, rule.value) for rule in rules)
        closed = first.copy() if others else first
        for other in others:
            closed.unite(other)
        return closed


def _applies(rule: SafetyRule, query: Query) -> bool:
    """Whether a rule holds for a viewer. Where the viewer isn't known, it does."""
    if rule.unless and all(_is(query, name, value, False) for name, value in rule.unless.items()):
        return False
    return all(_is(query, name, value, True) for name, value in rule.when.items())


def _is(query: Query, name: str, value: str, unknown: bool) -> bool:
    """Whether the request's context, or else the viewer's profile, has a value."""
    texts = spellings_of(value)
    if name in query.request.context:
        return str(query.request.context[name]) in texts
    has_value = any(key_of(f"user.{name}", text) in query.session.profile for text in texts)
    return has_value if query.viewer_known else unknown
