"""`recsys accept int8`: each form scores as a replay of its own, and what wasn't accepted isn't served."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.quality.simulated_world_log import WorldLog
from plugins.row_formats import command as accepting
from plugins.row_formats import measure as measuring
from plugins.row_formats.acceptance import write_accepted
from plugins.row_formats.measure import format_copies, measure
from plugins.row_formats.parameter_copies import SideBySide
from recsys.app.app_file import read_app
from recsys.config.loader import ConfigError
from recsys.config.system_config import Config, ModelConfig, digest
from recsys.features.feature_set import FeatureSet
from replay.datasets.app_dataset import AppDataset
from replay.direct_loop import DirectLoop
from replay.replay_run import ReplayOptions, config_for, replay_data, replay_with
from runtime.cli.main import app
from runtime.supervision.acceptance_file import Accept, check_accepted, file_of, input_digest
from tests.support.training.acceptance_cases import EVIDENCE, FEATURES

OPTIONS = ReplayOptions(features="ids", step_examples=24)
INT8 = replace(
    Config(),
    serve=replace(Config().serve, rows="int8"),
    parameter_server=replace(Config().parameter_server, delta_format="int8"),
)


def small() -> WorldLog:
    return WorldLog(1, hours=10, users=12, items=30, requests_per_s=0.003)


@pytest.mark.slow
def test_each_form_scores_as_a_replay_of_its_own() -> None:
    whole = replace(Config().parameter_server, delta_format="fp32")
    config = config_for(small(), OPTIONS, replace(Config(), parameter_server=whole))
    features = FeatureSet(small().schema, "ids", config.sessions.history)
    loop = DirectLoop(features, config)
    copies = format_copies(features, config)
    player = SideBySide(features, config, loop, copies=list(copies.values()))
    replay_with(player, small(), OPTIONS, iter, loop.digest)
    scores = {name: copy.scores() for name, copy in copies.items()}
    rows = {name: copy.rows for name, copy in copies.items()}
    for form, base in (("fp16", Config()), ("int8", INT8)):
        config = config_for(small(), OPTIONS, base)
        alone = replay_data(small(), OPTIONS, config).predictions.scores["long_view"]
        assert np.array_equal(scores[form], alone), form
    assert not np.array_equal(scores["int8"], scores["float32"])
    assert rows["int8"].nbytes < rows["float32"].nbytes and len(rows["int8"]) > 50


@pytest.mark.slow
def test_what_was_accepted_is_written_down_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "open_dataset", lambda *_: small())
    monkeypatch.setattr(accepting, "with_bar", iter)
    monkeypatch.setenv("RECSYS__MODEL__FEATURES", "ids")
    file = tmp_path / "decision.json"
    command = ["accept", "int8", str(tmp_path), "--state", str(tmp_path), "--json", str(file)]
    with monkeypatch.context() as patched:
        patched.setattr(accepting, "measure", lambda *_: replace(EVIDENCE, high=0.01))
        refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "refused: the cost in AUC" in refused.output
    assert json.loads(file.read_text())["decision"] == "refuse"
    assert not file_of(tmp_path, "int8").exists()
    done = CliRunner().invoke(app, [*command, "--at-most", "0.2"])
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_text())["decision"] == "accept"
    model = ModelConfig(features="ids")
    mine = replace(INT8, state=str(tmp_path), model=model)
    check_accepted(mine, FeatureSet(small().schema, "ids", 20))
    with pytest.raises(ConfigError, match="the feature set was"):
        check_accepted(mine, FeatureSet(small().schema, "ids", 30))


def test_it_judges_the_later_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_LOOKUPS", 2)
    found = measure(WorldLog(2, hours=1, users=6, items=20, requests_per_s=0.01), OPTIONS, Config())
    assert found.rows > 10 and found.users <= 6 and set(found.auc) == {"float32", "fp16", "int8"}
    assert found.features == input_digest(FeatureSet(small().schema, "ids", 20))


def test_the_features_of_a_definition_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "app.yaml"
    file.write_text("events: {long_view: positive}\nfeatures: {age: true}\nshown: clicks\n")
    world = WorldLog(2, hours=1, users=6, items=20, requests_per_s=0.01)
    monkeypatch.setattr(measuring, "_LOOKUPS", 2)
    monkeypatch.setattr(accepting, "open_dataset", lambda _, app, of: AppDataset(app, world))
    words = ["--state", str(tmp_path), "--app", str(file), "--at-most", "1"]
    done = CliRunner().invoke(app, ["accept", "int8", str(tmp_path), *words])
    assert done.exit_code == 0, done.output
    its = read_app(file)
    served = replace(INT8, state=str(tmp_path), model=its.config(Config()).model)
    assert served.model != Config().model
    check_accepted(served, its.feature_set())


def test_float32_needs_no_acceptance_and_int8_does(tmp_path: Path) -> None:
    check_accepted(replace(Config(), state=str(tmp_path)), FEATURES)
    mine = replace(INT8, state=str(tmp_path))
    with pytest.raises(ConfigError, match=f"recsys accept int8 DATA --state {tmp_path}"):
        check_accepted(mine, FEATURES)
    file = write_accepted(tmp_path, Accept("int8", 0.001, EVIDENCE))
    check_accepted(mine, FEATURES)
    with pytest.raises(ConfigError, match="model's configuration was"):
        check_accepted(replace(mine, model=ModelConfig(dim=8)), FEATURES)
    small = replace(mine, model=ModelConfig(dim=8))
    beside = replace(EVIDENCE, model=digest(small.model))
    assert write_accepted(tmp_path, Accept("int8", 0.001, beside)) != file
    for its in (mine, small):  # a model of another size may be served beside the first
        check_accepted(its, FEATURES)
    assert write_accepted(tmp_path, Accept("int8", 0.002, EVIDENCE)) == file
    check_accepted(mine, FEATURES)
    file.write_text('{"form": "int8"}')
    with pytest.raises(ConfigError, match="can't be read"):
        check_accepted(mine, FEATURES)
    # What is accepted again counts, whichever file the older word on the same model stands in.
    stale = replace(beside, features="older")
    file_of(tmp_path, "int8", beside.model).write_bytes(
        msgspec.json.encode(Accept("int8", 0.001, stale))
    )
    file.unlink()
    assert write_accepted(tmp_path, Accept("int8", 0.001, beside)) == file
    check_accepted(small, FEATURES)


def test_up_refuses_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS__SERVE__ROWS", "int8")
    monkeypatch.setenv("RECSYS__PARAMETER_SERVER__DELTA_FORMAT", "int8")
    monkeypatch.setenv("RECSYS__SERVE__PORT", "0")
    monkeypatch.setenv("RECSYS__SERVE__DASHBOARD_PORT", "0")
    result = CliRunner().invoke(app, ["up", "--state", str(tmp_path)])
    assert result.exit_code == 2 and "recsys accept int8 DATA" in " ".join(result.output.split())
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["int4", "nowhere"], "the format is 'int4'"), (["int8", "nowhere"], "nowhere"),
     (["int8", ".", "--at-most", "-1"], "--at-most is -1"),
     (["int8", ".", "--json", "no/such/f.json"], "there is no folder")],
)  # fmt: skip
def test_what_can_not_be_accepted_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["accept", *arguments])
    assert result.exit_code == 2 and said in " ".join(result.output.split())
