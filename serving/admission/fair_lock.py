"""Lock for one computation at a time that lets the event loop serve its sockets between two of them.

With a plain lock, requests whose sessions arrived together would be computed in one turn of the loop.
"""

import asyncio


class FairLock(asyncio.Lock):
    """First come, first served, as asyncio.Lock; ``release_later`` follows each ``acquire``."""

    def release_later(self) -> None:
        """Releases the lock in the next turn of the event loop."""
        asyncio.get_running_loop().call_soon(self.release)
