"""Tables on a narrow terminal."""

from io import StringIO

from rich.console import Console

from runtime.reports.tables import plain_table, some_of

NAME = "cand-20261128-033326-0d8f"


def test_names_in_the_first_column_are_never_cut() -> None:
    row = (NAME, "+0.0360 (+0.0186 to +0.0533)", "49 items shown to the canary's users, expected 500")
    output = StringIO()
    table = plain_table(("candidate", "log loss gained", "status"), [row], fold=("status",))
    Console(file=output, width=60).print(table)
    assert NAME in output.getvalue()


def test_what_is_beside_a_long_name_is_wrapped_and_not_cut() -> None:
    output = StringIO()
    rows = [
        ("columns of one value, which teach nothing", "a few"),
        ("trained", "on the newest 20,011 rows " * 3),
    ]
    Console(file=output, width=80).print(plain_table(("", ""), rows))
    words = " ".join(line[43:].strip() for line in output.getvalue().splitlines())
    assert words == " ".join(["a few", *["on the newest 20,011 rows"] * 3])


def test_a_name_that_a_client_chose_is_no_markup() -> None:
    output = StringIO()
    names = ["surface [/feed]", "[red]", "[link=https://a.example]a"]
    Console(file=output, width=90).print(plain_table(("part", "arm"), [(n, n) for n in names]))
    assert [line.split("  ")[0].strip() for line in output.getvalue().splitlines()[1:]] == names


def test_of_many_names_some_are_shown() -> None:
    assert some_of(["a", "b"], 2) == "a, b"
    assert some_of(["a", "b", "c", "d"], 2) == "a, b, 2 more"
