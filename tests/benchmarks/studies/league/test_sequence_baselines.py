"""RecBole's models as baselines: what they learn and when, with a small package in RecBole's place."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.studies.league.sequence_baselines import SequenceModel
from benchmarks.study import study

pytestmark = pytest.mark.steady

DAY_MS = 86_400_000
MODEL = '''
from torch import nn

class GRU4Rec(nn.Module):
    """As RecBole's: made of a configuration and a data set, it returns the vector of the last position."""

    def __init__(self, config, dataset):
        super().__init__()
        self.n_items = dataset.num(config["ITEM_ID_FIELD"])
        self.item_embedding = nn.Embedding(self.n_items, config["size"], padding_idx=0)
        self.gru = nn.GRU(config["size"], config["size"], batch_first=True)

    def gather_indexes(self, output, gather_index):
        return output[:, gather_index[0]]

    def forward(self, item_seq, item_seq_len):
        output, _ = self.gru(self.item_embedding(item_seq))
        return self.gather_indexes(output, item_seq_len - 1)
'''


@pytest.fixture
def recbole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "recbole"
    (package / "model/sequential_recommender").mkdir(parents=True)
    (package / "properties/model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model/sequential_recommender/gru4rec.py").write_text(MODEL)
    (package / "properties/model/GRU4Rec.yaml").write_text("size: 16\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "recbole"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "recbole"]:
        del sys.modules[name]


def circle(model: SequenceModel, step: int, users: range, now_ms: int) -> None:
    """Each user goes round five items: from each to the one ``step`` further."""
    for user in users:
        for n in range(12):
            model.learn(f"u{user}", (user + step * n) % 5, now_ms)


def best(model: SequenceModel, user: str, now_ms: int) -> int:
    items, scores = model.scores(user, now_ms)
    assert sorted(items.tolist()) == list(range(5))
    return int(items[scores.argmax()])


@pytest.mark.slow
def test_it_learns_what_follows_what(recbole: None) -> None:
    model = SequenceModel("GRU4Rec", epochs=150)
    circle(model, 2, range(10), 0)
    for item in range(5):
        model.learn(f"new{item}", item, 1)
        assert best(model, f"new{item}", 2) == (item + 2) % 5


@pytest.mark.slow
def test_it_learns_anew_with_the_first_scores_of_a_day_only(recbole: None) -> None:
    model = SequenceModel("GRU4Rec", epochs=100, more=200)
    circle(model, 1, range(5), 0)
    model.learn("new", 3, 1)
    assert best(model, "new", 2) == 4
    circle(model, 2, range(5, 25), 3)
    assert best(model, "new", DAY_MS - 1) == 4
    assert best(model, "new", DAY_MS) == 0


def test_without_a_pair_of_items_nothing_has_a_score(recbole: None) -> None:
    model = SequenceModel("GRU4Rec")
    model.learn("a", 1, 0)
    assert not len(model.scores("a", 1)[0]) and not len(model.scores("b", 1)[0])


def test_without_recbole_the_study_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "recbole", None)
    result = CliRunner().invoke(study, ["league", "folder", "--recbole"])
    assert result.exit_code == 2 and "pip install --no-deps recbole" in result.output
