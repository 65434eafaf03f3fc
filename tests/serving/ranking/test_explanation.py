from recsys.events.field_schema import values_of
from serving.ranking.explanation import reasons
from tests.support.replica_harness import item, made, viewer


def test_it_names_what_the_viewer_met_most_first_and_how_it_was_liked() -> None:
    replica = made()
    session = viewer(
        replica, liked=(3, 8, 13), seen=(18, 12)
    )  # 3, 8, 13, 18 are about t3; 3, 12 by a3
    found = reasons(session, replica.catalogue, 3)
    assert [(r["feature"], r["value"], r["met"], r["liked"]) for r in found] == [
        ("tags", "t3", 4.0, 0.75),
        ("author", "a3", 2.0, 0.5),
    ]


def test_what_was_met_days_ago_still_counts() -> None:
    replica = made()
    session = viewer(replica, liked=(3, 8))
    session.last_ms += 3 * 86_400_000
    (tag, *_) = reasons(session, replica.catalogue, 3)
    assert tag["value"] == "t3" and 1.5 < tag["met"] < 2 and tag["liked"] == 1.0


def test_a_stranger_has_no_reasons() -> None:
    replica = made()
    assert reasons(viewer(replica), replica.catalogue, 3) == ()
    replica.apply_item(item(41, author=None, tags=[None, ""]), 42)
    assert values_of(replica.catalogue.fields[40]["tags"]) == []
    assert reasons(viewer(replica, liked=(3,)), replica.catalogue, 40) == ()
