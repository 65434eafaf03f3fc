"""A line of durable shards that may crash."""

from parameter_server.rpc.parameter_client import Routed, part_of, route_lanes
from parameter_server.shard.shard import digest_of_shards
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from tests.support.parameter_server.small_line import DENSE, LANES, toy_spec

STEPS, PARTS, ALL = 25, 2, list(range(LANES))

# Most of what a step changes is held back, so that what is must come back too.
SPEC = toy_spec(PARTS, delta_format="fp16", delta_bytes=120, settle_every=17, digest_every=3)


class Crash(Exception):
    """The process is gone."""


class Line:
    """Durable shards behind the client's interface; a crash reopens the shard and asks again."""

    def __init__(self, folder, crash_at=(None, 0, 0), snapshot_every=10, background=False):
        self.folder, self.every, self.background = folder, snapshot_every, background
        self.point, self.part, self.step = crash_at
        self.published, self.crashes, self.spec = [], 0, SPEC
        self.shards = [self.open(part) for part in range(PARTS)]

    def open(self, part):
        home = ShardStorage(self.folder / "snapshots", self.folder / f"{part}.wal", self.every, 2)
        publish = self.published.extend
        dense = DENSE if part == 0 else None
        shard = DurableShard(part_of(self.spec, part), home, publish, dense, self.background)
        shard.flush()
        return shard

    def crash(self, part):
        self.shards[part]._wal.close()
        self.crashes += 1
        self.shards[part] = self.open(part)

    def arm(self, shard):
        """Makes the shard crash at its point of the step that comes."""

        def dies(call, before):
            def wrapped(*arguments):
                if not before:
                    call(*arguments)
                raise Crash

            return wrapped

        wal = shard._wal
        if self.point == "before write":
            wal.append = dies(wal.append, before=True)
        elif self.point == "after write":
            wal.append = dies(wal.append, before=False)
        elif self.point == "torn write":
            append, start = wal.append, wal.nbytes

            def torn(step, payload):
                append(step, payload)
                wal._file.truncate(start + (wal.nbytes - start) // 2)
                raise Crash

            wal.append = torn
        elif self.point in ("before publish", "after publish"):
            shard._publish = dies(shard._publish, before=self.point == "before publish")
        elif self.point == "before snapshot":
            shard.snapshot = dies(shard.snapshot, before=True)
        elif self.point == "before truncation":
            wal.truncate_before = dies(wal.truncate_before, before=True)
        elif self.point == "after step":
            shard.learn = dies(shard.learn, before=False)

    def align(self):
        return min(self.applied_steps())

    def applied_steps(self):
        return [shard.applied for shard in self.shards]

    def lookup(self, step, keys):
        routed = Routed(keys, PARTS)
        return routed.merge([s.lookup(step, routed.of(p))[0] for p, s in enumerate(self.shards)])

    def dense(self, step):
        return self.shards[0].lookup(step, {})[1]

    def exchange(self, step, time_ms, lanes, next_keys):
        for part, own in enumerate(route_lanes(lanes, PARTS)):
            if self.step == step and self.part == part:
                self.step = 0
                self.arm(self.shards[part])
            try:
                self.shards[part].learn(step, time_ms, own)
            except Crash:
                self.crash(part)
                self.shards[part].learn(step, time_ms, own)
        return self.lookup(step, next_keys), self.dense(step)

    def digest(self):
        return digest_of_shards([shard.shard for shard in self.shards])
