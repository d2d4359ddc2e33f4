"""When waiting for other members is pointless: links away for two seconds, without a break."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from incus_actors.services.absence import Absence, peer_down


class Links:
    """A consensus that knows only links, and a clock that a test moves."""

    def __init__(self, **links: bool) -> None:
        self.now_s = 50.0
        self.links = {int(name.removeprefix("m")): up for name, up in links.items()}

    def status(self) -> Any:
        return SimpleNamespace(
            member_id=1, peers=[SimpleNamespace(id=member, link=up) for member, up in self.links.items()]
        )


def absence_of(links: Links) -> Absence:
    return Absence(links, grace_s=2.0, monotonic_s=lambda: links.now_s)  # type: ignore[arg-type]


def test_a_member_is_given_up_when_its_links_stay_away() -> None:
    links = Links(m2=False, m3=True)
    absence = absence_of(links)
    assert absence.gone([1, 2, 3]) == []
    links.now_s += 1.9
    assert absence.gone([1, 2, 3]) == []
    links.now_s += 0.2
    assert absence.gone([1, 2, 3]) == [2]


def test_a_member_that_restarts_is_waited_for() -> None:
    links = Links(m2=False)
    absence = absence_of(links)
    for up in (False, True, False):
        links.links[2] = up
        assert absence.gone([2]) == []
        links.now_s += 1.5
    assert absence.gone([2]) == []
    links.now_s += 1.5
    assert absence.gone([2]) == [2]


def test_a_member_that_consensus_does_not_know_is_not_there() -> None:
    links = Links()
    absence = absence_of(links)
    absence.gone([4])
    links.now_s += 3
    assert absence.gone([4]) == [4]
    assert str(peer_down("10.0.0.4:8443")) == "peer node 10.0.0.4:8443 is down"
