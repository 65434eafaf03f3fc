"""Waiting for a system in one process, and checks of its stamps."""

from benchmarks.studies.promotion.promotion_run import PromotionRun


async def until(run: PromotionRun, line: str, *stages: str, lists: int = 500) -> str:
    for _ in range(lists // 5):
        await run.show(5)
        stage: str = run.lifecycle.candidates[line].stage
        if stage in stages:
            return stage
    raise AssertionError(f"{line} is {run.lifecycle.candidates[line]}")


def stamps(run: PromotionRun, since: int = 0) -> list[tuple[str, int, int]]:
    found = [answer.stamp for answer in run.answers[since:]]
    return [(stamp.line, stamp.epoch, stamp.step) for stamp in found]


def never_back(found: list[tuple[str, int, int]]) -> bool:
    newest: dict[tuple[str, int], int] = {}
    for line, epoch, step in found:
        if step < newest.get((line, epoch), 0):
            return False
        newest[line, epoch] = step
    return True
