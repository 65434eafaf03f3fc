import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config.log_config import LogConfig
from recsys.config.system_config import laptop
from recsys.events.records import EVENTS
from recsys.log.protocol import LogUnavailable
from recsys.process.open_log import create_topics, open_log


def test_a_laptop_has_its_log_in_the_state_folder(tmp_path: Path) -> None:
    config = replace(laptop(), state=str(tmp_path))
    log = open_log(config)
    create_topics(log, config)
    create_topics(log, config)
    assert log.partitions(EVENTS) == config.log.partitions
    assert (tmp_path / "log" / "events.sqlite").exists()
    assert open_log(config).id == log.id


def test_another_number_of_partitions_is_refused_with_the_remedy(tmp_path: Path) -> None:
    config = replace(laptop(), state=str(tmp_path))
    log = open_log(config)
    create_topics(log, config)
    with pytest.raises(ValueError, match="Set log.partitions to 4"):
        create_topics(log, replace(config, log=LogConfig(partitions=8)))


def test_only_the_library_of_the_log_in_use_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from recsys.process.open_log import open_log\n"
        "from recsys.config.system_config import *\n"
        "open_log(Config(state=sys.argv[1])); print('kafka' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "False"


@pytest.mark.slow
def test_a_kafka_that_is_not_there_is_said() -> None:
    from recsys.log.kafka_log import KafkaLog

    with pytest.raises(LogUnavailable, match="See that the broker of log.url runs"):
        KafkaLog("kafka://127.0.0.1:1", patience_s=1)
