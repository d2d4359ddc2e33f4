"""The YAML of `cluster edit`: what may be changed, in Incus' words."""

from __future__ import annotations

import pytest

from incus_actors.cli.cluster_document import (
    DocumentError,
    Row,
    check_edit,
    edited_members,
    parse,
    renames,
    render,
    rows_of,
)
from incus_actors.consensus.types import Member, Role

KEY = "ab" * 32
MEMBERS = (
    Member(1, f"10.67.0.1:20001:20002:{KEY}", Role.VOTER),
    Member(2, f"10.67.0.2:20001:20002:{KEY}", Role.STANDBY),
    Member(3, f"10.67.0.3:20001:20002:{KEY}", Role.SPARE),
    Member(4, f"10.67.0.4:20001:20002:{KEY}", Role.VOTER),
)
NAMES = {n: (f"node{n}", f"10.67.0.{n}:8443") for n in (1, 2, 3)}
ROWS = rows_of(MEMBERS, NAMES)


def changed(member: int, **values: int | str) -> list[Row]:
    return [Row(**{**{f: getattr(r, f) for f in r.__slots__}, **(values if r.id == member else {})}) for r in ROWS]


def test_as_incus_prints_it() -> None:
    text = render(ROWS[:2])
    assert text == (
        "members:\n- id: 1\n  name: node1\n  address: 10.67.0.1:8443\n  role: voter\n"
        "- id: 2\n  name: node2\n  address: 10.67.0.2:8443\n  role: stand-by\n"
    )
    assert parse(f"# a comment\n{text}") == ROWS[:2]
    assert ROWS[3] == Row(4, "member-4", "10.67.0.4:20001", "voter")  # the tables don't know it


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (ROWS[:3], "Removing cluster members is not supported"),
        ([*ROWS, Row(5, "node5", "10.67.0.5:8443", "spare")], "Adding cluster members is not supported"),
        (changed(2, name="other"), "Changing cluster member name is not supported"),
        (changed(2, id=7), "Changing cluster member ID is not supported"),
        (changed(3, role="voter"), 'A "spare" cluster member cannot become a "voter"'),
        (changed(1, role="spare"), 'Number of "voter" must be 2 or more'),
        ([Row(r.id, r.name, r.address, "spare") for r in ROWS], 'Number of "voter" must be 2 or more'),
        (changed(1, role="king")[:3], 'unknown raft role: "king"'),
        (changed(1, address="10.67.0.1"), "host:port is needed"),
        (changed(1, address="10.67.0.2:8443"), "Two members can't have one address"),
    ],
)
def test_what_an_edit_can_not_do(after: list[Row], words: str) -> None:
    with pytest.raises(DocumentError, match=words):
        check_edit(ROWS, after)
    with pytest.raises(DocumentError, match='At least one member must be a "voter"'):
        check_edit(ROWS[:1], [Row(1, "", "10.67.0.1:8443", "spare")])


@pytest.mark.parametrize("text", ["", "members: 5", "members: [{id: x}]", "{", "members:\n- {id: 1}", "members: [5]"])
def test_what_is_no_document(text: str) -> None:
    with pytest.raises(DocumentError, match="Invalid YAML"):
        parse(text)


def test_a_new_host_moves_the_transport_and_the_tables() -> None:
    after = changed(2, address="[fd00::2]:9443", role="voter")
    check_edit(ROWS, after)
    edited = edited_members(MEMBERS, ROWS, after)
    assert edited[1] == Member(2, f"[fd00::2]:20001:20002:{KEY}", Role.VOTER)
    assert (edited[0], *edited[2:]) == (MEMBERS[0], *MEMBERS[2:])
    made = renames(ROWS, after)
    assert made is not None
    assert [s.parameters for s in made.statements] == [
        ("[fd00::2]:9443", 2),
        ("[fd00::2]:9443", 2, "10.67.0.2:8443"),
    ]
    assert renames(ROWS, changed(2, role="voter")) is None


def test_a_new_port_leaves_the_transport_alone() -> None:
    after = changed(1, address="10.67.0.1:9443")
    assert edited_members(MEMBERS, ROWS, after) == MEMBERS


def test_a_host_that_can_not_be_dialled() -> None:
    after = changed(1, address="not_a_host!:8443")
    with pytest.raises(DocumentError, match="Invalid address"):
        edited_members(MEMBERS, ROWS, after)
