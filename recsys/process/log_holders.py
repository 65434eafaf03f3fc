"""Names of the folds that keep retention from dropping records of a topic."""

from recsys.log.protocol import Log

_HOUR_MS = 3_600_000


def holders(log: Log, topic: str, now_ms: int) -> list[str]:
    """The lowest hold of each partition that begins where retention has come to, with its age if the log
    knows append times."""
    texts = []
    for partition in range(log.partitions(topic)):
        holds, begin = log.holds(topic, partition), log.begin(topic, partition)
        name = min(holds, key=holds.__getitem__, default="")
        if not name or holds[name] > begin or begin == log.end(topic, partition):
            continue
        text = f"{name} holds {topic}/{partition}"
        appended_ms = getattr(log, "appended_ms", lambda *_: None)(topic, partition, begin)
        if appended_ms is not None:
            text += f" since {(now_ms - appended_ms) / _HOUR_MS:.0f} h"
        texts.append(text)
    return texts
