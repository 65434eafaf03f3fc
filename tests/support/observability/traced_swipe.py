"""One traced swipe, from request to learned step."""

from benchmarks.answers.reconstruction_run import _item
from benchmarks.harness.local_system import LocalSystem
from serving.request import Request


async def swipe_and_learn(system: LocalSystem, requests: int) -> list[str]:
    system.publish([_item(n, 0) for n in range(200)])
    await system.start()
    asked = []
    for n in range(requests):
        system.now_ms += 500
        answer = await system.ask(Request(f"u{n % 7}", n=8))
        asked.append(answer.request_id)
        await system.watch(answer)
        system.turn()
    await system.stop()
    return asked
