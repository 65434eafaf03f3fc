"""``dataset.yaml``: the description of an event log. Unknown keys are errors, with their line."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.config.yaml_with_lines import YamlError, YamlWithLines
from recsys.events.event_types import ENGAGEMENT_KINDS
from recsys.events.field_schema import CATEGORICAL, NUMERIC, VECTOR
from replay.datasets.dataset import DataError

Kind = Literal[ENGAGEMENT_KINDS]  # type: ignore[valid-type]
FieldKind = Literal[CATEGORICAL, NUMERIC, VECTOR]  # type: ignore[valid-type]
Part = Literal["item", "user", "context"]


class LogSettings(BaseModel):
    """Values of a dataset.yaml. ``fields``, when given, makes the scan of the log unnecessary."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    labels: Annotated[list[Kind], Field(min_length=1)]
    window_s: Annotated[float, Field(gt=0)]
    name: str = ""
    horizon_s: Annotated[float, Field(ge=0)] = 3600.0  # a repeated event_id within it counts once
    all_shown: bool = False
    vectors: dict[str, Annotated[int, Field(ge=1)]] = {}
    fields: dict[Part, dict[str, FieldKind]] = {}
    groups: list[str] = []
    utc_offset_h: Annotated[float, Field(gt=-24)] = 0.0


def read_settings(file: Path) -> LogSettings:
    """Reads and checks a dataset.yaml; raises DataError with the line and the key."""
    try:
        marked = YamlWithLines(file.read_text("utf-8"), file)
        values = marked.mapping(set(LogSettings.model_fields))
        return LogSettings(**{key: value for key, value in values.items() if value is not None})
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(file, f"a readable file ({error})") from error
    except YamlError as error:
        raise DataError(file, error.reason, line=error.line) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        actual = "" if first["type"] == "missing" else f", found {first['input']!r}"
        key = ".".join(part for part in first["loc"] if isinstance(part, str) and part != "[key]")
        line = marked.line(*first["loc"])
        raise DataError(file, f"{first['msg']}{actual}", line=line, field=key) from error
