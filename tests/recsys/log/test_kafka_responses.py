"""Response classes of kafka-python that two threads make at once."""

import gc
from types import SimpleNamespace

from kafka.protocol.admin import CreateTopicsResponse
from kafka.protocol.api_header import ResponseClassRegistry

import recsys.log.kafka_connection  # noqa: F401  (keeps the response classes)


def test_a_class_that_another_thread_replaced_stays_registered() -> None:
    first, versions = CreateTopicsResponse[4], CreateTopicsResponse._VERSIONS
    del versions[
        4
    ]  # as a second thread saw it, which had asked before the first one stored its own
    second = CreateTopicsResponse[4]  # registered last
    versions[4] = first  # stored last
    assert second is not first
    del second
    gc.collect()
    header = SimpleNamespace(request_api_key=CreateTopicsResponse.API_KEY, request_api_version=4)
    assert ResponseClassRegistry.get_response_class(header) is first
