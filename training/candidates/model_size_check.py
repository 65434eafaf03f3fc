"""Whether a candidate whose model isn't the configured one may be judged beside it: of another size it may.

Its file says with which configuration it was trained; what is proposed then says the size, so that every part
knows it before any has seen the candidate.
"""

from typing import Final

import msgspec

from experiments.promotion.epoch_model import size_difference
from recsys.config.system_config import ModelConfig
from recsys.events.control_records import ModelSize
from training.candidates.registry import Provenance, Refused, model_config

_REMEDY: Final = "train one with this configuration, or start the system with that of the candidate"


def size_of(its: Provenance, configured: ModelConfig) -> ModelSize | None:
    """The size of a candidate's model; None where its model is the configured one. Raises Refused where it
    differs in more than its size, with every value and what was expected."""
    try:
        return size_difference(configured, model_config(its))
    except (ValueError, msgspec.ValidationError) as error:
        raise Refused(
            f"candidate {its.name} has another model configuration: {error}; {_REMEDY}"
        ) from error
