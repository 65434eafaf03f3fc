from dataclasses import replace

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import Shard, digest_of_shards
from recsys.events.records import Delta
from tests.support.parameter_server.small_line import DENSE, LANES, toy_spec, work


def test_dense_parameters_travel_as_often_as_their_time_says() -> None:
    """Steps are 3 s apart; a shard that starts again from an export goes on in the same way."""
    spec = toy_spec(1, settle_every=8, dense_every_ms=9_000)
    deltas, plain = list[Delta](), list[Delta]()
    client = LocalClient.fresh(spec, DENSE, deltas.append)
    work(client, list(range(LANES)), 11)
    again = Shard(spec, DENSE)
    arrays, meta = client.shards[0].export()
    again.load([arrays], meta)
    work(LocalClient([again], deltas.append), list(range(LANES)), 20)
    assert [delta.step for delta in deltas if delta.dense] == [1, 4, 7, 8, 11, 14, 16, 19]
    each = LocalClient.fresh(replace(spec, dense_every_ms=0), DENSE, plain.append)
    work(each, list(range(LANES)), 20)
    assert all(delta.dense for delta in plain)
    assert digest_of_shards([again]) == digest_of_shards(each.shards)
    sent = {delta.step: delta.dense for delta in plain}
    assert all(delta.dense in (b"", sent[delta.step]) for delta in deltas)
