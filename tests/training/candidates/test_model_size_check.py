"""A candidate with a model of another size is proposed with it; one that differs in more is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import typer

from experiments.promotion.epoch_model import with_size
from parameter_server.shard.shard import Shard
from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, digest
from recsys.events.control_records import Candidate, Control, ModelSize
from recsys.events.records import CONTROL
from recsys.features.feature_set_file import feature_set
from recsys.model.model import build_model
from recsys.process.log_consumer import readable
from recsys.process.open_log import create_topics, open_log
from runtime.cli.candidates import propose_to
from runtime.supervision import launch_plan as plans
from tests.support.plan_config import FREE
from training.candidates.registry import Provenance, Refused, Registry, model_size_of, plain_config
from training.lines.line import spec_of

MODEL = ModelConfig(dim=4, vector_dim=8, hidden=(16,))
SMALL = ModelSize(2, (4,))


def provenance(name: str, model: ModelConfig, **changes: object) -> Provenance:
    values = dict(
        name=name, kind="student", feature_set="f", model=digest(model), config=plain_config(model),
        code="", made_ms=1, from_ms=0, until_ms=1,
    )  # fmt: skip
    return Provenance(**(values | changes))  # type: ignore[arg-type]


def test_its_size_is_known_from_its_file() -> None:
    student = with_size(replace(Config(), model=MODEL), SMALL).model
    assert model_size_of(provenance("s", student), MODEL) == SMALL
    assert model_size_of(provenance("s", MODEL), MODEL) is None


def test_one_that_differs_in_more_or_says_nothing_sensible_is_refused() -> None:
    other = replace(MODEL, dim=2, vector_dim=4)
    with pytest.raises(Refused, match="candidate s has .* model.vector_dim is 4, expected 8; only"):
        model_size_of(provenance("s", other), MODEL)
    for config in ({"dim": "two"}, {"dim": 0}, {"hidden": [4, 0]}):
        name = next(iter(config))
        with pytest.raises(Refused, match=f"candidate s has another model configuration: .*{name}"):
            model_size_of(provenance("s", MODEL, config=plain_config(MODEL) | config), MODEL)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    its = replace(Config(), state=str(tmp_path), model=MODEL, serve=FREE)
    its, plan = plans.resolve(its)
    plans.write(its, plan)
    log = open_log(its)
    create_topics(log, its)
    log.close()
    return its


def added(config: Config, name: str, model: ModelConfig) -> Registry:
    """A candidate that has learned nothing, in the system's registry."""
    features = feature_set(config)
    log = open_log(config)
    about = provenance(name, model, feature_set=features.digest, log_id=log.id)
    log.close()
    its = replace(config, model=model, parameter_server=ParameterServerConfig(shards=1))
    arrays, meta = Shard(spec_of(its), build_model(features, model).read_dense()).export()
    registry = Registry(Path(config.state) / "registry")
    registry.add(about, arrays, meta, 0)
    return registry


def said(config: Config) -> list[Candidate]:
    log = open_log(config)
    found = [its for its in readable(log, CONTROL, Control) if isinstance(its, Candidate)]
    log.close()
    return found


def test_what_is_proposed_says_its_size(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    student = with_size(config, SMALL).model
    for name, model in (("s", student), ("as-usual", MODEL)):
        registry = added(config, name, model)
        propose_to(Path(config.state), name, registry.folder)
        assert capsys.readouterr().out == ""  # `recsys offline --json -` has stdout alone
    found = {its.line: (its.kind, its.size) for its in said(config)}
    assert found == {"s": ("student", SMALL), "as-usual": ("student", None)}


def test_what_can_not_be_live_here_is_not_proposed(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = added(config, "wide", replace(MODEL, dim=2, vector_dim=4))
    with pytest.raises(typer.Exit):
        propose_to(Path(config.state), "wide", registry.folder)
    assert "model.vector_dim is 4, expected 8; only dim, hidden and ranker may differ" in (
        capsys.readouterr().err
    )
    assert said(config) == []
