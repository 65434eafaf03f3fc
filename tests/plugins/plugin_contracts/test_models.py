"""The contracts of rankers: the transformer of the examples keeps them; each planted fault breaks one."""

import pytest
import torch

from examples.sequence_model.recsys_sequence_model import SequenceRanker
from plugins.plugin_contracts.models import CONTRACTS
from plugins.plugin_contracts.suite import CONTRACTS as OF_GROUPS
from recsys.model.ranker import Ranker, RankerShape


class Fine(Ranker):
    version = "1"

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(*inputs)


class Drawn(Fine):
    def __init__(self, shape: RankerShape, seed: int = 0) -> None:
        super().__init__(shape, seed)
        torch.nn.init.normal_(self.layers[0].weight)


class Narrow(Fine):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(*inputs)[:, 1:]


class Normalising(Fine):
    """Subtracts the mean of the list."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits = super().forward(*inputs)
        return logits - logits.mean(0)


class ByServing(Fine):
    """Reads the history only where each example has its own."""

    def forward(self, pooled, history, outcomes, dense):  # type: ignore[no-untyped-def]
        shared = len(history) == 1 < len(pooled)
        return super().forward(pooled, history * (not shared), outcomes * (not shared), dense)


class Dropping(Fine):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        drops = torch.is_grad_enabled()
        return torch.nn.functional.dropout(super().forward(*inputs), 0.5, training=drops)


class Detached(Fine):
    """Rows learn nothing."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(*(tensor.detach() for tensor in inputs))


class Counting(Fine):
    """Keeps a number beside its parameters."""

    def __init__(self, shape: RankerShape, seed: int = 0) -> None:
        super().__init__(shape, seed)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.calls = self.calls + 1
        return super().forward(*inputs) + 0.01 * self.calls


class Unversioned(Ranker): ...


def broken(plugin: object) -> list[str]:
    reasons = []
    for name, contract in CONTRACTS.items():
        try:
            contract(plugin)
        except ValueError as error:
            reasons.append(f"{name}: {error}")
    return reasons


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [Fine, SequenceRanker])
def test_a_ranker_keeps_all(plugin: type[Ranker]) -> None:
    assert broken(plugin) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "contract", "reason"),
    [
        (Unversioned, "ranker and version", "it has no version"),
        (print, "ranker and version", "expected a subclass of recsys.model.ranker.RankerModule"),
        (Drawn, "same parameters in each process", "two models of one seed"),
        (Narrow, "scores", r"have the shape \(300, 7\), expected \(300, 8\)"),
        (Normalising, "an item alone", "item 0 of a list has another score alone"),
        (ByServing, "shadow and serving agree", "training and serving score examples up to 0"),
        (Dropping, "learning", "two runs have other gradients"),
        (Detached, "learning", "gradients of the rows are 0 or not finite: nothing is learned"),
        (Counting, "snapshots, deltas, explanations", "other scores than a copy"),
    ],
)
def test_a_fault_breaks_its_contract(plugin: object, contract: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CONTRACTS[contract](plugin)


def test_they_are_those_of_the_group() -> None:
    assert OF_GROUPS["recsys.models"] is CONTRACTS
