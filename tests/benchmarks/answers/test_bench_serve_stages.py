"""Which stage a stack is in."""

import pytest

from benchmarks.answers.bench_serve_stages import _figures, sampling, stage_of

APP = [
    "/x/serving/service.py",
    "/x/serving/http_app.py",
    "/x/serving/http/strict_json.py",
    "/y/starlette/routing.py",
]


@pytest.mark.parametrize(
    ("inner", "stage"),
    [
        (["/x/recsys/features/session.py"], "unpack"),
        (
            [
                "/x/recsys/features/session.py",
                "/x/recsys/features/feature_builder.py",
                "/x/serving/pipeline.py",
            ],
            "features",
        ),
        (["/y/numpy/core.py", "/x/serving/sources/retrieval.py", "/x/serving/pipeline.py"], "retrieve"),
        (["/x/recsys/events/event_types.py"], "impression"),
        (["/x/serving/pipeline.py"], "answer"),
        ([], "answer"),  # the service itself
    ],
)
def test_the_outermost_that_works_counts_else_the_innermost_that_passes_on(
    inner: list[str], stage: str
) -> None:
    assert stage_of([*inner, *APP]) == stage


def test_what_is_on_no_list_is_other_and_ways_count_where_nothing_works() -> None:
    assert stage_of(["/python/json.py"]) == "other"
    assert stage_of(["/python/json.py", *APP[1:]]) == "encode"
    assert stage_of(APP[2:]) == "parse"


def test_looks_are_counted_and_make_up_the_whole_time() -> None:
    with sampling() as found:
        while found.total() < 3:
            sum(range(1_000))
    its = _figures(found, passed_s=0.5, asked=100)
    assert its["request_us"] == 5_000.0 and its["stages_us"] == {"other": 5_000.0}
