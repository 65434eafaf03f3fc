from msgspec.structs import replace

from experiments.promotion.unlearning_requests import ASSIGNED, DONE, REFUSED, UnlearningRequests
from recsys.events.control_records import Unlearning

FIRST, SECOND = Unlearning(id="a", users={"u1": 3}), Unlearning(id="b", users={"u2": 5})


def test_requests_are_handled_one_at_a_time_and_keep_their_users() -> None:
    requests = UnlearningRequests()
    for record in (FIRST, SECOND):
        requests.fold(record)
    assert requests.pending == FIRST and requests.pending_users == {"u1", "u2"}
    requests.fold(replace(FIRST, state=ASSIGNED, users={}, epoch=4))
    assert requests.pending is not None and requests.pending.users == {"u1": 3}
    assert requests.epochs == {0, 4}
    requests.fold(replace(FIRST, state=DONE, users={}, epoch=4))
    assert requests.pending == SECOND and [request.id for request in requests.done] == ["a"]
    requests.fold(replace(SECOND, state=REFUSED))
    assert requests.pending is None and requests.pending_users == set()
