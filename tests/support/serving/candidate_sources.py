"""Names of the sources of candidates, by catalogue index."""

from serving.request import Candidates


def names_by_index(candidates: Candidates) -> dict[int, list[str]]:
    indices = enumerate(candidates.indices_N.tolist())
    return {index: [*candidates.sources_of(position)] for position, index in indices}
