"""The shards learn what torchrec's fused table learns: the same batches, the same gradients from above.

torchrec is the oracle: its ``FusedEmbeddingBagCollection`` with row-wise Adagrad is FBGEMM in one process.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import ShardSpec
from parameter_server.table.kernels import EPSILON
from parameter_server.table.table import initial_rows
from recsys.config.system_config import TableConfig

pytestmark = pytest.mark.slow

IDS, BATCH = 2_000, 64
TABLES = (TableConfig("videos", 16, 0.05, 0.01), TableConfig("tags", 8, 0.02, 0.01))
LENGTHS = {"videos": 1, "tags": 3}
Bags = dict[str, NDArray[np.int64]]  # (BATCH, length) by table


def batches(steps: int) -> Iterator[Bags]:
    """Some ids are in most batches, most ids in few; a bag may hold an id twice."""
    draw = np.random.default_rng(7)
    for _ in range(steps):
        yield {
            name: np.minimum(draw.zipf(1.3, (BATCH, length)), IDS).astype(np.int64)
            for name, length in LENGTHS.items()
        }


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # such small sums lose more by being shared
    yield
    torch.set_num_threads(before)


class Ours:
    """Rows in two shards; the network's gradient of a pooled row goes to each row of its bag."""

    def __init__(self, dense: NDArray[np.float32] | None = None, rate: float = 0.001) -> None:
        spec = ShardSpec(tables=TABLES, lanes=1, parts=2, seed=3, dense_rate=rate)
        dense = np.zeros(1, np.float32) if dense is None else dense
        self.client, self.step = LocalClient.fresh(spec, dense, lambda delta: None), 0

    def pooled(self, bags: Bags) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Pooled rows (BATCH, D) by table, and the leaves that they were made from."""
        self._keys = {name: np.unique(bag) for name, bag in bags.items()}
        rows = self.client.lookup(self.step, self._keys)
        leaves = {name: torch.from_numpy(rows[name]).requires_grad_() for name in bags}
        at = {name: np.searchsorted(self._keys[name], bag) for name, bag in bags.items()}
        pooled = {
            name: F.embedding_bag(torch.from_numpy(at[name]), leaves[name], mode="mean") for name in bags
        }
        return pooled, leaves

    def learn(self, leaves: dict[str, Tensor], dense: NDArray[np.float32] | None = None) -> None:
        gradients = {}
        for name, keys in self._keys.items():
            grad = leaves[name].grad
            assert grad is not None
            gradients[name] = RowGradients(keys, grad.numpy(), np.ones(len(keys), np.int32))
        self.step += 1
        dense = np.zeros(1, np.float32) if dense is None else dense
        self.client.exchange(self.step, self.step, [LaneGradients(0, gradients, dense)], None)


def theirs_of(table: TableConfig) -> Any:
    """A collection of one table: a rate of its own needs an optimizer of its own."""
    # Imported here: it takes two seconds, also where these tests aren't run.
    import fbgemm_gpu  # noqa: F401  (before torchrec: it loads the operators)
    from torchrec import EmbeddingBagConfig, PoolingType
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad

    collection = FusedEmbeddingBagCollection(
        [
            EmbeddingBagConfig(
                name=table.name, embedding_dim=table.dim, num_embeddings=IDS + 1,
                feature_names=[table.name], pooling=PoolingType.MEAN,
            )
        ],
        optimizer_type=RowWiseAdagrad,
        optimizer_kwargs={"lr": table.learning_rate, "eps": EPSILON},
        device=torch.device("cpu"),
    )  # fmt: skip
    weight = collection.state_dict()[f"embedding_bags.{table.name}.weight"]
    with torch.no_grad():
        weight.copy_(torch.from_numpy(initial_rows(table, 3, np.arange(IDS + 1))))
    return collection


def jagged(name: str, bag: NDArray[np.int64]) -> Any:
    from torchrec import KeyedJaggedTensor

    lengths = torch.full((len(bag),), bag.shape[1], dtype=torch.int64)
    return KeyedJaggedTensor.from_lengths_sync(
        keys=[name], values=torch.from_numpy(bag.reshape(-1)), lengths=lengths
    )


def test_rows_after_a_thousand_steps_of_the_same_gradients() -> None:
    ours, oracle = Ours(), {t.name: theirs_of(t) for t in TABLES}
    above = torch.Generator().manual_seed(1)
    for bags in batches(1_000):
        pooled, leaves = ours.pooled(bags)
        for name, bag in bags.items():
            gradient = torch.randn(pooled[name].shape, generator=above)
            pooled[name].backward(gradient)
            oracle[name](jagged(name, bag)).values().backward(gradient)
        ours.learn(leaves)
    for table in TABLES:
        keys = np.arange(1, IDS + 1)
        mine = ours.client.lookup(ours.step, {table.name: keys})[table.name]
        other = oracle[table.name].state_dict()[f"embedding_bags.{table.name}.weight"].numpy()[1:]
        moved = np.abs(mine - initial_rows(table, 3, keys)).max(1) > 0
        assert moved.sum() > 300, "most of the ids were learned"
        apart = np.linalg.norm(mine - other, axis=1) / np.linalg.norm(other, axis=1)
        assert apart.max() < 1e-5, f"{table.name}: {apart.max()}"


def test_predictions_of_a_network_trained_on_top_of_either() -> None:
    width = sum(t.dim for t in TABLES)

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 1))

    mine, other = network(), network()
    flat = torch.cat([p.detach().reshape(-1) for p in mine.parameters()]).numpy()
    ours, oracle = Ours(flat), {t.name: theirs_of(t) for t in TABLES}
    adam = torch.optim.Adam(other.parameters(), lr=0.001)
    labels = np.random.default_rng(2)
    apart = 0.0
    for bags in batches(300):
        wanted = torch.from_numpy(labels.integers(0, 2, (BATCH, 1)).astype(np.float32))
        pooled, leaves = ours.pooled(bags)
        nn.utils.vector_to_parameters(
            torch.from_numpy(ours.client.dense(ours.step).copy()), mine.parameters()
        )
        mine.zero_grad()
        logits = mine(torch.cat([pooled[t.name] for t in TABLES], 1))
        F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum").backward()
        dense = torch.cat([p.grad.reshape(-1) for p in mine.parameters() if p.grad is not None])
        ours.learn(leaves, dense.numpy())

        adam.zero_grad()
        rows = [oracle[name](jagged(name, bag)).values() for name, bag in bags.items()]
        expected = other(torch.cat(rows, 1))
        F.binary_cross_entropy_with_logits(expected, wanted, reduction="sum").backward()
        adam.step()
        difference = torch.sigmoid(logits.detach()) - torch.sigmoid(expected.detach())
        apart = max(apart, float(difference.abs().max()))
    assert apart < 1e-4
    assert float(logits.detach().std()) > 0.01, "the network learned something"
