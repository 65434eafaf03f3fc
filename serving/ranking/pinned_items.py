"""Items that somebody names: the caller's own candidates, and those that a policy fixes to a rank."""

from collections.abc import Container

from recsys.config.policy_config import PolicyConfig
from recsys.features.catalogue import Catalogue
from recsys.features.session import Session
from serving.request import Request


def given(catalogue: Catalogue, request: Request) -> tuple[dict[int, list[str]], dict[str, int]]:
    """The caller's own candidates, each once; what is unknown, gone or excluded is left out, and counted."""
    excluded = {str(item_id) for item_id in request.exclude_ids}
    distinct = dict.fromkeys(map(str, request.candidate_ids or ()))
    known = [catalogue.index_of(item_id) for item_id in distinct]
    alive = [i for i in known if i is not None and catalogue.alive[i]]
    kept = [i for i in alive if str(catalogue.ids[i]) not in excluded]
    removed = {"unknown": len(distinct) - len(alive), "excluded": len(alive) - len(kept)}
    return {i: ["given"] for i in kept}, removed


def fixed(
    catalogue: Catalogue,
    request: Request,
    session: Session,
    policy: PolicyConfig,
    found: Container[int],
) -> dict[int, int]:
    """Catalogue indices by the rank that they are fixed to: of what may come. What was seen may, too."""
    excluded = {str(item_id) for item_id in request.exclude_ids}
    kept: dict[int, int] = {}
    for rank, item_id in policy.fixed.items():
        index = catalogue.index_of(item_id)
        if index is None or int(rank) >= request.n or not catalogue.alive[index]:
            continue
        hidden = int(catalogue.keys[index, 0]) in session.hidden
        missing = request.candidate_ids is not None and index not in found
        if not hidden and not missing and str(item_id) not in excluded:
            kept[int(rank)] = index
    return kept
