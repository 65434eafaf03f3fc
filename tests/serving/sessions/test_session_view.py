"""What a person's session looks like to the page."""

from serving.sessions.session_view import view_of
from tests.support.serving.replica_harness import made, viewer


def test_recent_items_are_learned_once_a_model_has_learned_this_request_s_view_of_them() -> None:
    replica = made()
    session = viewer(replica, liked=(3, 5))  # by the requests s0 and s1
    for learned, expected in ((set(), [False, False]), ({("s1", "v5"), ("s1", "v3")}, [True, False])):
        recent = view_of(session, replica.catalogue, {}, learned)["recent"]
        assert [entry["item_id"] for entry in recent] == ["v5", "v3"]
        assert [entry["learned"] for entry in recent] == expected
