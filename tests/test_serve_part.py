"""The part that drives Serve: what it takes down, and where it says that the API is."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from recsys.cli.plan import feed_url
from recsys.cli.serve import take_down
from recsys.config import Config, ServeConfig


class FakeServe:
    """Serve with the applications of a shared cluster."""

    def __init__(self, *names):
        self.applications = dict.fromkeys(names)

    def status(self):
        return SimpleNamespace(applications=self.applications)

    def delete(self, name):
        del self.applications[name]

    def shutdown(self):
        self.applications.clear()


def test_another_s_application_goes_on_in_a_cluster_that_is_not_ours():
    shared, own = FakeServe("recsys", "another"), FakeServe("recsys")
    take_down(shared, "recsys", owns_ray=False)
    take_down(shared, "recsys", owns_ray=False)  # it never came up: fine
    take_down(own, "recsys", owns_ray=True)
    assert list(shared.applications) == ["another"] and not own.applications


@pytest.mark.parametrize(
    "host, expected",
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("192.0.2.7", "192.0.2.7")],
)  # fmt: skip
def test_the_api_is_reached_over_loopback_where_it_binds_everywhere(host, expected):
    config = replace(Config(), serve=ServeConfig(host=host, port=8001))
    assert feed_url(config) == f"http://{expected}:8001"
