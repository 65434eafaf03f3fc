"""What clients of Gorse and Metarank say, in our words; which of their routes there are."""

from dataclasses import dataclass, field

from recsys.config.checks import check
from recsys.events.event_types import ENGAGEMENT_KINDS


@dataclass(frozen=True)
class CompatConfig:
    # Off: with them on, who reaches the port can label the newest list of anybody whose name they guess.
    gorse: bool = False  # /api/...
    metarank: bool = False  # /feedback, /rank/..., /recommend/...
    # Gorse's feedback types and Metarank's interaction types, as engagement kinds. Others are refused.
    kinds: dict[str, str] = field(
        default_factory=lambda: {
            "read": "view",
            "view": "view",
            "long_view": "long_view",
            "click": "click",
            "star": "like",
            "like": "like",
            "favorite": "like",
            "purchase": "like",
            "follow": "follow",
            "comment": "comment",
            "share": "share",
            "skip": "skip",
            "hide": "hide",
            "dislike": "hide",
        }
    )
    # The fields of an item that Gorse's Labels (where they are a list) and Categories stand in. The defaults
    # are features of the feed's own items.
    labels: str = "tags"
    categories: str = "topic"
    # Whether Metarank's /feedback takes items and users without the admin key: its clients know none. What
    # takes away always needs it.
    keyless: bool = False

    def __post_init__(self) -> None:
        for name, kind in self.kinds.items():
            check(
                kind in ENGAGEMENT_KINDS, f"compat.kinds.{name}", kind,
                f"one of {', '.join(ENGAGEMENT_KINDS)}",
            )  # fmt: skip
        for key in ("labels", "categories"):
            check(bool(getattr(self, key)), f"compat.{key}", "", "the name of an item's field")
        check(
            self.labels != self.categories, "compat.labels", self.labels,
            "another field than compat.categories",
        )  # fmt: skip
