"""One computation at a time, and between two of them the event loop looks at its sockets.

Without it, all requests whose sessions came together are computed one after the other in one turn of the
loop; meanwhile nobody is refused, no event is taken and no health is told.
"""

import asyncio
from collections import deque


class FairLock:
    """First come, first through. Used in one event loop; ``pass_on`` follows each ``turn`` that returned."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def turn(self) -> None:
        """Waits until it is the caller's turn."""
        if not self._busy:
            self._busy = True
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.pass_on()  # it was let through in the moment when it gave up
            raise

    def pass_on(self) -> None:
        """The caller is done. The next one goes once the loop has looked around."""
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        while self._waiting:
            following = self._waiting.popleft()
            if not following.done():
                following.set_result(None)
                return
        self._busy = False
