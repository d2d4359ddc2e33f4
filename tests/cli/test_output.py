"""Tables, CSV and YAML, byte for byte as the stock client printed them."""

from __future__ import annotations

import click
import pytest
import yaml

from incus_actors.cli import output
from incus_actors.cli.shapes import Keys
from incus_actors.cli.yaml_text import Plain, dump

HEADINGS = ["NAME", "ROLES", "DESCRIPTION"]
ROWS = [["m1", "database-leader\ndatabase", ""], ["m2", "database", 'a "quoted", one']]


def test_table_has_a_line_under_every_row_and_centred_headings() -> None:
    assert output.render("table", HEADINGS, ROWS, None) == (
        "+------+-----------------+-----------------+\n"
        "| NAME |      ROLES      |   DESCRIPTION   |\n"
        "+------+-----------------+-----------------+\n"
        "| m1   | database-leader |                 |\n"
        "|      | database        |                 |\n"
        "+------+-----------------+-----------------+\n"
        '| m2   | database        | a "quoted", one |\n'
        "+------+-----------------+-----------------+"
    )


def test_compact_has_no_lines() -> None:
    assert output.render("compact", HEADINGS, ROWS, None).split("\n") == [
        "  NAME       ROLES         DESCRIPTION    ",
        "  m1    database-leader                   ",
        "        database                          ",
        '  m2    database         a "quoted", one  ',
    ]


def test_csv_quotes_only_what_needs_it() -> None:
    rows = [["a,b", 'q"', "", " x", "y ", "\\."]]
    assert output.render("csv", ["A"], rows, None) == '"a,b","q""",," x",y ,"\\."'
    assert output.render("csv,header", HEADINGS, [], None) == "NAME,ROLES,DESCRIPTION"


def test_empty_table_shows_its_headings() -> None:
    assert output.render("table", ["NAME", "my_addr"], [], None) == (
        "+------+---------+\n| NAME | MY ADDR |\n+------+---------+"
    )


def test_json_is_compact_and_escapes_as_go_does() -> None:
    assert output.render("json", [], [], [{"a": "<&é>", "b": None}]) == '[{"a":"\\u003c\\u0026é\\u003e","b":null}]'


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("foo", 'Invalid value "foo" for flag "--format"'),
        ("table,foo", 'Invalid modifier "foo" on flag "--format" ("table,foo")'),
    ],
)
def test_unknown_formats_are_refused(given: str, text: str) -> None:
    with pytest.raises(click.ClickException, match="^" + text.replace("(", r"\(").replace(")", r"\)")):
        output.check_format(given)


def test_names_sort_naturally_and_nothing_comes_last() -> None:
    """The order of a real client (digits before all else, m2 before m10, empty after the rest)."""
    names = ["9", "10", "-x", ".crt", "N3", "_y", "a b", "m1", "n1", "n1a", "n2", "n10", "zz"]
    assert [row[0] for row in output.sorted_rows([[n] for n in reversed(names)])] == names
    assert output.sorted_rows([["", "b"], ["", "a"], ["x", "c"]]) == [["x", "c"], ["", "a"], ["", "b"]]


def test_wide_characters_take_two_columns() -> None:
    assert output.table(None, [["日本"], ["abcde"]]).split("\n")[1] == "| 日本  |"


@pytest.mark.parametrize(
    "text", ["yes", "1", "true", "12:30:45", "null", "0x1F", "1e3", "2020-01-01", "~", "y", "1_000", ""]
)
def test_yaml_strings_that_read_as_something_else_are_in_double_quotes(text: str) -> None:
    assert dump({"k": text}) == f'k: "{text}"\n'


@pytest.mark.parametrize("text", ["it's", "é", ".", "a#b", "=", "<<", "<&>", "\\", "node1"])
def test_other_yaml_strings_are_plain(text: str) -> None:
    assert dump({"k": text}) == f"k: {text}\n"


@pytest.mark.parametrize("text", ["a: b", "#x", " x", "*x", "x:", "{}", "@a", '"q', "%x", "`", "a "])
def test_yaml_strings_that_would_break_are_in_single_quotes(text: str) -> None:
    assert dump({"k": text}) == f"k: '{text}'\n"


def test_yaml_of_values_lists_and_maps() -> None:
    value = {
        "roles": ["a", "b"],
        "config": Keys({"user.10": "1", "user.9": "2"}),
        "none": [],
        "empty": {},
        "database": True,
        "number": 3,
        "load": 1.5,
        "nothing": None,
        "when": Plain("2026-11-21T04:09:44.827578522Z"),
        "pem": "l1\nl2\n",
        "astral": "💥",
        "tab": "a\tb",
    }
    assert dump(value) == (
        'roles:\n- a\n- b\nconfig:\n  user.9: "2"\n  user.10: "1"\nnone: []\nempty: {}\ndatabase: true\nnumber: 3\n'
        "load: 1.5\nnothing: null\nwhen: 2026-11-21T04:09:44.827578522Z\npem: |\n  l1\n  l2\n"
        'astral: "\\U0001F4A5"\ntab: "a\\tb"\n'
    )
    assert yaml.safe_load(dump({"config": Keys({"a": "yes"})})) == {"config": {"a": "yes"}}
