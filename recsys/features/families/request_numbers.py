"""Numeric fields of the viewer and of the request's context."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recsys.config.yaml_values import YamlValues
from recsys.events.field_schema import NUMERIC
from recsys.features.columns import CONTEXT, USER, Column
from recsys.features.families.base import Family, Fault, Floats, RequestView, one_of
from recsys.features.families.item_fields import log_scale

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet


@dataclass(frozen=True)
class DeclaredNumbers:
    """``numbers``: numeric fields of users and contexts, as ``user.age``."""

    numbers: tuple[str, ...] = ()


class RequestNumbers(Family):
    """Declared numbers on a signed logarithmic scale; 0 for one that is missing."""

    name, keys = "fields", ("numbers",)

    def __init__(self, features: "FeatureSet") -> None:
        super().__init__(features)
        names = features.declared.numbers if self.at.stop else ()
        owners = [(at, features.request_fields[name][0]) for at, name in enumerate(names, self.at.start)]
        self._of_user = [at for at, owner in owners if owner == USER]
        self._of_context = [at for at, owner in owners if owner == CONTEXT]

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """A list of names."""
        return {"numbers": values.names(raw.get("numbers", []), "features", "numbers")}

    @classmethod
    def faults(cls, features: "FeatureSet") -> Iterator[Fault]:
        """Names that aren't declared as numbers."""
        names = [f"{p}.{n}" for p in (USER, CONTEXT) for n in features.schema.names(p, NUMERIC)]
        for at, name in enumerate(features.declared.numbers):
            if name not in names:
                reason = f"features.numbers has {name!r}, expected {one_of(names)}"
                yield ("features", "numbers", at), reason

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """The same for all candidates."""
        for name in features.declared.numbers:
            yield Column(cls.name, name, (cls.name, name), own=True)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """The viewer's are kept in the session."""
        dense_NF[:, self._of_user] = request.session.numbers or 0.0
        dense_NF[:, self._of_context] = own_numbers(self.features, CONTEXT, request.context)


def own_numbers(features: "FeatureSet", owner: str, fields: Mapping[str, Any]) -> list[float]:
    """Declared numbers of a ``user`` or a ``context``."""
    declared = (features.request_fields[name] for name in features.declared.numbers)
    return [log_scale(fields.get(name)) for part, name in declared if part == owner]
