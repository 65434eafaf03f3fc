"""Times on the command line."""

import typer

from recsys.clock import parse_time_ms


def parse_time(text: str | None, utc_offset_h: float) -> int | None:
    """Parses epoch milliseconds or ISO time; a time without a zone has the data set's UTC offset."""
    try:
        return None if text is None else parse_time_ms(text, utc_offset_h)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; expected epoch milliseconds or ISO, e.g. 2022-04-28T00:00"
        ) from None
