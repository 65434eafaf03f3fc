"""A link between two network devices that delays frames and loses some, in a process of its own.

Not every kernel has the traffic shaper ``netem``, so frames are forwarded here: raw sockets read them from
one device and write them to the other one.
"""

import heapq
import random
import selectors
import socket
import sys
import time
from typing import Final

ETH_P_ALL: Final = 3
PACKET_OUTGOING: Final = 4
SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15  # frames carry what the kernel still has to do: checksums, segments
SO_RCVBUFFORCE: Final = 33  # beyond the limit that holds for others than root
_LARGEST: Final = 1 << 17


class Delays:
    """Frames that are due later, each with the socket that it leaves by; some are lost.

    ``loss``: share of frames that are lost. Values in and out: the caller hands in the time.
    """

    def __init__(self, delay_s: float, loss: float, seed: int) -> None:
        self._delay_s, self._loss, self._random = delay_s, loss, random.Random(seed)
        self._due: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def put(self, out: int, frame: bytes, now_s: float) -> None:
        """Takes a frame that leaves by ``out``."""
        if self._random.random() >= self._loss:
            self._count += 1
            heapq.heappush(self._due, (now_s + self._delay_s, self._count, out, frame))

    def take(self, now_s: float) -> list[tuple[int, bytes]]:
        """The frames that are due by now, the oldest first."""
        due = []
        while self._due and self._due[0][0] <= now_s:
            due.append(heapq.heappop(self._due)[2:])
        return due

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until the next frame is due; None without any."""
        return max(0.0, self._due[0][0] - now_s) if self._due else None


def _open(device: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    opened.bind((device, ETH_P_ALL))
    opened.setblocking(False)
    return opened


def forward(devices: tuple[str, str], delays: Delays) -> None:
    """Forwards in both directions until the process is ended."""
    ends = [_open(device) for device in devices]
    with selectors.DefaultSelector() as selector:
        for number, end in enumerate(ends):
            selector.register(end, selectors.EVENT_READ, number)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select(delays.wait_s(time.monotonic())):
                try:
                    while True:
                        frame, address = ends[key.data].recvfrom(_LARGEST)
                        if address[2] != PACKET_OUTGOING:
                            delays.put(1 - key.data, frame, time.monotonic())
                except BlockingIOError:
                    pass
            for out, frame in delays.take(time.monotonic()):
                try:
                    ends[out].send(frame)
                except OSError as error:  # a full queue or a device that is down: the frame is lost
                    print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    first, second, delay_s, loss, seed = sys.argv[1:]
    forward((first, second), Delays(float(delay_s), float(loss), int(seed)))
