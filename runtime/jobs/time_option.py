"""Times on the command line."""

from datetime import UTC, datetime, timedelta, timezone

import typer


def parse_time(text: str | None, utc_offset_h: float) -> int | None:
    """Parses epoch milliseconds or ISO time; a time without a zone has the data set's UTC offset."""
    if text is None:
        return None
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; expected epoch milliseconds or ISO, e.g. 2022-04-28T00:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone(timedelta(hours=utc_offset_h)))
    return int(moment.astimezone(UTC).timestamp() * 1000)
