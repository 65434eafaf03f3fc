"""The bench of the trainer runs, small, and does what it says."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.learning import bench_train
from benchmarks.learning import single_process_loops as bench_loops
from benchmarks.learning.single_process_loops import logits_by_our_layers, logits_by_torch_layers
from benchmarks.learning.synthetic_examples import FEATURES, FIELDS, append_examples, draw_examples, one_hot
from recsys.config.system_config import ModelConfig
from recsys.events.records import EXAMPLES, STEPS, Example, topics, unpack
from recsys.log.protocol import MemoryLog
from recsys.model.model import build_model
from recsys.process.open_log import open_log
from runtime.cli.main import load
from training.continual.learner import Learner
from training.steps.step_reader import ExampleCheck


def test_the_same_seed_draws_the_same_examples_and_few_ids_are_frequent():
    first, again, other = (draw_examples(500, 100, seed) for seed in (1, 1, 2))
    assert first.keys_NF.shape == (500, 24) == (500, FIELDS)
    assert (first.keys_NF == again.keys_NF).all() and (first.keys_NF != other.keys_NF).any()
    assert (first.labels_NK == again.labels_NK).all() and 0 < first.labels_NK.mean() < 1
    counts = np.sort(np.unique(first.keys_NF[:, 3], return_counts=True)[1])
    assert counts[-1] > 5 * np.median(counts)
    fields = [set(first.keys_NF[:, field]) for field in range(FIELDS)]
    assert len(set.union(*fields)) == sum(map(len, fields))  # no id is two fields'


def test_the_log_holds_what_was_drawn_in_turn_and_the_learner_takes_it():
    drawn, log = draw_examples(10, 50, 0), MemoryLog()
    for topic in topics(4):
        log.create(topic)
    append_examples(log, drawn)
    read = [[unpack(record.value, Example) for record in log.read(EXAMPLES, part, 0)] for part in range(4)]
    assert [len(its) for its in read] == [3, 3, 2, 2]
    back = one_hot(read[1])
    assert (back.keys_NF == drawn.keys_NF[1::4]).all()
    assert (back.labels_NK == drawn.labels_NK[1::4]).all()
    assert (back.watch_ms_N == drawn.watch_ms_N[1::4]).all()
    assert not any(ExampleCheck(FEATURES, 0).reason(example) for example in read[1])
    lane = Learner(build_model(FEATURES, ModelConfig(features="ids"))).prepare(read[1])
    assert set(lane.lookup.keys["features"]) == set(drawn.keys_NF[1::4].reshape(-1))


@pytest.mark.slow
def test_the_bench_tells_its_figures_beside_the_peers(tmp_path):
    pytest.importorskip("fbgemm_gpu")
    file = tmp_path / "bench.json"
    arguments = ["train", "--together", "--ids", "50", "--batches", "2", "--batch", "8"]
    arguments += ["--rounds", "2"]
    result = CliRunner().invoke(load("benchmarks.bench:bench", "bench"), [*arguments, "--json", str(file)])
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found["bench"] == "train" and "--together" in found["command"]
    assert found["figures"]["examples_per_s"] > 0 and len(found["figures"]["rounds"]) == 2
    peers = found["comparators"]
    assert set(peers) == {"torchrec", "torchrec_our_layers", "embedding_bag"}
    for name in ("torchrec", "torchrec_our_layers", "embedding_bag"):
        assert peers[name]["examples_per_s"] > 0 and peers[name]["threads"] in (1, 2)
        assert peers[name]["ours_of_it"] > 0


@pytest.mark.slow
def test_the_shards_learn_every_step_that_stands_on_the_log(tmp_path):
    config = bench_train._config(str(tmp_path), 8)
    bench_train._write(config, draw_examples(6 * 16, 40, 0))
    log = open_log(config)
    assert log.end(STEPS, 0) == 6
    figures = bench_train.ours(bench_train.Job(config, 6, "token"), apart=False)
    assert figures["examples_per_s"] > 0 and "cpu_us_per_example" not in figures
    assert log.end("deltas", 0) == 6 * bench_train.SHARDS
    assert all((tmp_path / f"{part}.wal").stat().st_size > 0 for part in range(2))
    log.close()


def test_a_part_that_fails_is_told_at_once(tmp_path):
    config = bench_train._config(str(tmp_path), 8)
    bench_train._write(config, draw_examples(16, 40, 0))
    other = replace(config, step=replace(config.step, lanes=1))
    with pytest.raises(RuntimeError, match="of the bench failed"):
        bench_train.ours(bench_train.Job(other, 1, "token"), apart=False)


def test_the_loops_read_every_example_once(tmp_path):
    config = bench_train._config(str(tmp_path), 8)
    drawn = draw_examples(48, 40, 0)
    bench_train._write(config, drawn)
    read = np.concatenate([its.keys_NF for its in bench_loops.batches_of(config, 8)])
    assert sorted(map(tuple, read)) == sorted(map(tuple, drawn.keys_NF))


def test_a_loop_by_torch_computes_what_a_loop_by_our_layers_does():
    ranker = build_model(FEATURES, ModelConfig()).ranker
    rows = torch.randn(8, FIELDS, ModelConfig().dim + 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        logits_by_torch_layers(ranker, rows), logits_by_our_layers(ranker, rows), rtol=1e-4, atol=1e-5
    )
