"""A replica has an index before its first answer, and another is made beside it."""

import time
from dataclasses import replace
from pathlib import Path

from recsys.config.system_config import ServeConfig
from tests.support.serving.followed_log import FollowedLog


def test_many_items_have_their_index_before_anybody_is_answered_and_later_ones_beside_it(
    tmp_path: Path,
) -> None:
    its = FollowedLog(tmp_path)
    its.config = replace(its.config, serve=ServeConfig(index_flat_items=150))
    for i in range(100):
        its.item(i)
    few, many = its.another(), None
    few.followers.catch_up(lambda: False)
    for i in range(100, 400):
        its.item(i)
    many = its.another()
    many.followers.catch_up(lambda: False)
    assert (
        few.replica.index.name == "" != many.replica.index.name
        and few.followers.ready
        and many.followers.ready
    )
    for _ in range(400):  # the replica that was there makes another, a little in each turn
        few.followers.apply(few.followers.read())
        if few.replica.index.name:
            break
        time.sleep(0.002)
    files = {file.stem for file in (tmp_path / "indexes").iterdir()}
    for variant in (few, many):
        name, vectors = variant.replica.index.name, variant.replica.index.vectors
        assert name.split("-")[0] in files and len(vectors) == 400
        its.item(3, removed=True)
        its.turn(variant)
        wanted = variant.replica.catalogue.living
        found = variant.replica.index.search(vectors[3].copy(), 400, wanted)[0]
        assert 3 not in found and len(found) == 399
