"""Where the control room is."""

from dataclasses import dataclass

from recsys.config.checks import check


@dataclass(frozen=True)
class ControlRoomConfig:
    host: str = "127.0.0.1"
    port: int = 0  # of the part ``control-room``; 0: there is none, but in `recsys demo`

    def __post_init__(self) -> None:
        check(0 <= self.port <= 65_535, "control_room.port", self.port, "0 (no part) to 65535")
        check(bool(self.host), "control_room.host", self.host, "an address")
