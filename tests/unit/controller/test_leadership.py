"""Every rule of leadership, on a clock that is set and a Lease that is kept here."""

import copy
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from conntrack_operator.controller import leadership
from conntrack_operator.controller.leadership import NAME, Leadership, identity
from conntrack_operator.errors import LookAgain, Refused, Retry, StandBack


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Leases:
    """What the API server does for a Lease. `trouble` is raised instead of the next answers, one each.

    With `late` a request is carried out and its answer never comes; `takes` seconds pass before and after it.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lease: dict[str, Any] | None = None
        self.trouble: list[Exception] = []
        self.late = False
        self.takes = (0.0, 0.0)
        self.writes = 0
        self._version = 0

    def get(self, _: object, name: str, namespace: str) -> dict[str, Any] | None:
        """Return the Lease."""
        assert (name, namespace) == (NAME, "ns")
        self._ask()
        self.clock.now += self.takes[1]
        return copy.deepcopy(self.lease)

    def create(self, _: object, document: dict[str, Any], namespace: str) -> dict[str, Any]:
        """Make the Lease, if there is none."""
        assert namespace == "ns"
        self._ask()
        if self.lease is not None:
            raise LookAgain("AlreadyExists")
        return self._stored({"name": NAME, "uid": f"uid-{self._version}"}, document["spec"])

    def replace_parts(
        self, _: object, name: str, parts: Mapping[str, Any], *, namespace: str, only_if: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Write the Lease, if it is still the one that was seen."""
        assert (name, namespace, set(parts)) == (NAME, "ns", {"/spec"})
        self._ask()
        if self.lease is None:
            return None
        found = {f"/metadata/{key}": self.lease["metadata"][key] for key in ("uid", "resourceVersion")}
        if only_if != found:
            raise LookAgain("changed")
        return self._stored(self.lease["metadata"], parts["/spec"])

    def holder(self) -> str:
        """Return who is in it."""
        assert self.lease
        return str(self.lease["spec"]["holderIdentity"])

    def edit(self, **spec: Any) -> None:
        """Change it, as somebody's hand would."""
        assert self.lease
        self._stored(self.lease["metadata"], {**self.lease["spec"], **spec})
        self.writes -= 1

    def _ask(self) -> None:
        if self.trouble:
            raise self.trouble.pop(0)
        self.clock.now += self.takes[0]

    def _stored(self, metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        self.writes += 1
        self.lease = {
            "metadata": {**metadata, "resourceVersion": str(self._version)},
            "spec": dict(spec),
        }
        self.clock.now += self.takes[1]
        if self.late:
            self.late = False
            raise Retry("no answer")
        return copy.deepcopy(self.lease)


@pytest.fixture
def clock() -> Clock:
    """Give the clock of all candidates."""
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> Leases:
    """Give the API server of all candidates."""
    return Leases(clock)


def candidate(leases: Leases, name: str, clock: Clock | None = None) -> Leadership:
    """Return a candidate, on the common clock or one of its own."""
    return Leadership(leases, "ns", name, clock or leases.clock)


def leader(leases: Leases, name: str) -> Leadership:
    """Return one that leads."""
    won = candidate(leases, name)
    assert won.attempt() is None
    return won


def wait_for_it(waiting: Leadership, clock: Clock, most_seconds: float = 60) -> float:
    """Let a candidate try as often as it wants to; return the seconds until it leads."""
    began = clock.now
    while (pause := waiting.attempt()) is not None:
        assert clock.now - began < most_seconds, "it never led"
        clock.now += pause
    return clock.now - began


def test_the_first_leads_at_once_and_the_other_says_whom_it_waits_for(
    leases: Leases, caplog: pytest.LogCaptureFixture
) -> None:
    """One acts, the other may not; it says so once, however often it looks."""
    caplog.set_level(logging.INFO)
    first, second = candidate(leases, "a"), candidate(leases, "b")
    assert first.attempt() is None
    assert first.fence.open_seconds() == 15
    for _ in range(5):
        assert second.attempt() == 1
    with pytest.raises(StandBack):
        second.fence.open_seconds()
    assert caplog.messages == ["leading as a", "waiting: a leads"]


def test_a_dead_leader_is_followed_after_15_seconds(leases: Leases, clock: Clock) -> None:
    """The other acts 15 s after it last saw a renewal, and the change of holder is counted."""
    first, second = leader(leases, "a"), candidate(leases, "b")
    second.attempt()
    clock.now += 3
    first.renew()
    assert wait_for_it(second, clock) == 15
    assert leases.holder() == "b"
    assert leases.lease
    assert leases.lease["spec"]["leaseTransitions"] == 1
    assert "ran out" in first.loss()


def test_a_living_leader_is_never_followed(leases: Leases, clock: Clock) -> None:
    """Renewals that nearly fail to come in time still count, for minutes."""
    first, second = leader(leases, "a"), candidate(leases, "b")
    for second_of_time in range(200):
        if second_of_time % 14 == 0:
            first.renew()
        assert second.attempt() is not None
        clock.now += 1
    assert not first.loss()


def test_one_who_looks_rarely_does_not_take_what_was_renewed_meanwhile(leases: Leases, clock: Clock) -> None:
    """Its API server was away for a minute, or its machine asleep: what counts is whether the Lease has changed."""
    first, second = leader(leases, "a"), candidate(leases, "b")
    second.attempt()
    for _ in range(20):
        clock.now += 3
        first.renew()
    assert second.attempt() == 1
    assert leases.holder() == "a"


def test_a_silence_is_measured_from_after_the_answer(leases: Leases, clock: Clock) -> None:
    """A renewal may be granted while the question is on its way: the holder's 15 s began earlier than the answer."""
    second = candidate(leases, "b")
    first = leader(leases, "a")
    leases.takes = (0.0, 2.0)
    asked = clock.now
    second.attempt()
    leases.takes = (0.0, 0.0)
    wait_for_it(second, clock)
    assert clock.now - asked == 17
    assert first.loss()


def test_two_who_try_at_once(leases: Leases, clock: Clock) -> None:
    """Both find it free; one is granted it, the other waits from then on."""
    first = leader(leases, "a")
    second, third = candidate(leases, "b"), candidate(leases, "c")
    for each in (second, third):
        each.attempt()
    clock.now += 15
    both = [each._look() for each in (second, third)]
    second._take(both[0])
    with pytest.raises(LookAgain):
        third._take(both[1])
    assert third.attempt() == 1
    assert (leases.holder(), first.loss() != "", third.fence.left_seconds()) == ("b", True, 0)


def test_two_who_create_it_at_once(leases: Leases) -> None:
    """The API server takes the first; the second looks again."""
    first, second = candidate(leases, "a"), candidate(leases, "b")
    assert first._look() is second._look() is None
    first._take(None)
    with pytest.raises(LookAgain):
        second._take(None)
    assert second.attempt() == 1


def test_a_deadline_counts_from_before_the_request(leases: Leases, clock: Clock) -> None:
    """However long the answer takes, others measure from the renewal's arrival: we from before it was sent."""
    leases.takes = (1.0, 2.5)
    first = candidate(leases, "a")
    first._take(None)
    assert first.fence.left_seconds() == 15 - 3.5
    clock.now += 3
    first.renew()
    assert first.fence.left_seconds() == 15 - 3.5


def test_a_renewal_answered_after_the_deadline_is_a_loss(leases: Leases, clock: Clock) -> None:
    """Also when it was granted: whoever was frozen in between does nothing more."""
    first = leader(leases, "a")
    clock.now += 14
    leases.takes = (0.5, 1.0)
    first.renew()
    assert leases.holder() == "a"
    assert "answered when it had run out" in first.loss()
    with pytest.raises(StandBack):
        first.fence.open_seconds()


def test_a_renewal_whose_answer_was_lost(leases: Leases, clock: Clock) -> None:
    """It was carried out all the same: the Lease is still ours, and the next renewal finds that out by looking."""
    first = leader(leases, "a")
    leases.late = True
    with pytest.raises(Retry):
        first.renew()
    assert first.fence.left_seconds() == 15
    clock.now += 3
    first.renew()
    assert (first.fence.left_seconds(), first.loss()) == (15, "")


def test_a_take_over_whose_answer_was_lost(leases: Leases, clock: Clock) -> None:
    """The Lease names us although nobody told us: it is ours, at once, and counted once."""
    leader(leases, "a")
    second = candidate(leases, "b")
    second.attempt()
    clock.now += 15
    leases.late = True
    assert second.attempt() == 1
    assert (leases.holder(), second.fence.left_seconds()) == ("b", 0)
    clock.now += 1
    assert second.attempt() is None
    assert leases.lease
    assert leases.lease["spec"]["leaseTransitions"] == 1


def test_the_api_server_is_away_until_the_lease_has_run_out(
    leases: Leases, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewals fail, which is said once; at the deadline the leader has lost, whether or not anybody else leads."""
    caplog.set_level(logging.INFO)
    first = leader(leases, "a")
    leases.trouble = [Retry("the API server does not answer")] * 20
    while not first.loss():
        assert clock.now < 1016
        assert first._renewed() == 1
        clock.now += 1
    assert clock.now == 1015
    assert "ran out before it could be renewed: the API server does not answer" in first.loss()
    assert caplog.messages.count("the API server does not answer") == 1
    leases.trouble = []
    first.renew()
    with pytest.raises(StandBack):
        first.fence.open_seconds()


def test_a_short_absence_of_the_api_server_is_survived(leases: Leases, clock: Clock) -> None:
    """Four renewals may fail."""
    first = leader(leases, "a")
    leases.trouble = [Retry("away")] * 10
    for _ in range(10):
        assert first._renewed() == 1
        clock.now += 1
    assert first._renewed() == leadership.RENEW_SECONDS
    assert (first.fence.left_seconds(), first.loss()) == (15, "")


def test_a_suspended_machine_has_lost(leases: Leases, clock: Clock) -> None:
    """The clock went on: nothing is renewed, nothing written."""
    first, second = leader(leases, "a"), candidate(leases, "b")
    second.attempt()
    clock.now += 600
    assert wait_for_it(second, clock) == 0
    with pytest.raises(LookAgain):
        first.renew()
    assert leases.holder() == "b"
    assert first.loss()


@pytest.mark.parametrize("holder", ["b", ""])
def test_somebody_else_in_the_lease_is_a_loss(leases: Leases, holder: str) -> None:
    """Whoever wrote it, and also when nobody is named: another may take it any moment."""
    first = leader(leases, "a")
    leases.edit(holderIdentity=holder)
    assert first._renewed() == 0, "it looks at once"
    assert first._renewed() == leadership.RENEW_SECONDS
    assert f"{holder or 'nobody'} is named in the lease" in first.loss()
    with pytest.raises(StandBack):
        first.fence.open_seconds()


def test_a_hand_in_the_lease_that_leaves_the_holder(leases: Leases, clock: Clock) -> None:
    """Somebody labelled it, say: its version has changed, it is still ours."""
    first = leader(leases, "a")
    clock.now += 3
    leases.edit()
    assert first._renewed() == 0
    assert first._renewed() == leadership.RENEW_SECONDS
    assert (first.loss(), first.fence.left_seconds()) == ("", 15)


def test_a_deleted_lease_is_made_anew_by_its_holder_before_anybody_who_waited(leases: Leases, clock: Clock) -> None:
    """The one who waits knows that the holder may not have noticed yet."""
    first, second = leader(leases, "a"), candidate(leases, "b")
    second.attempt()
    leases.lease = None
    assert second.attempt() == 1
    assert leases.lease is None
    assert first._renewed() == 0
    assert first._renewed() == leadership.RENEW_SECONDS
    assert (leases.holder(), first.loss()) == ("a", "")
    clock.now += 1
    assert second.attempt() == 1


def test_a_deleted_lease_that_another_has_made_is_a_loss(leases: Leases) -> None:
    """One that just started never saw the old one and takes what is free."""
    first = leader(leases, "a")
    leases.lease = None
    leader(leases, "b")
    first._renewed()
    first._renewed()
    assert "b is named" in first.loss()


def test_it_is_given_up_for_the_other_to_act_at_once(leases: Leases, clock: Clock) -> None:
    """After resigning nothing is written any more, and nobody waits for the Lease to run out."""
    first, second = leader(leases, "a"), candidate(leases, "b")
    second.attempt()
    clock.now += 1
    first.resign(1)
    assert leases.holder() == ""
    with pytest.raises(StandBack):
        first.fence.open_seconds()
    assert wait_for_it(second, clock) == 0
    assert leases.holder() == "b"


def test_it_is_not_given_up_while_a_write_is_on_its_way(leases: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """Its answer has not come: the API server may carry it out later, when another leads already."""
    first = leader(leases, "a")
    with first.fence.writing():
        first.resign(0.01)
    assert leases.holder() == "a"
    assert "a write is not answered" in caplog.text


def test_what_another_took_is_not_given_up(leases: Leases) -> None:
    """It was lost already, which nobody had noticed yet."""
    first = leader(leases, "a")
    leases.edit(holderIdentity="b", leaseTransitions=1)
    first.resign(1)
    assert leases.holder() == "b"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Retry("namespace ns does not exist; kubectl create namespace ns"), "kubectl create namespace ns"),
        (Refused("Forbidden", "leases is forbidden"), "rights on leases"),
        (Retry("the API server does not answer"), "does not answer"),
    ],
)
def test_what_stands_in_the_way_is_said_once_and_outlived(
    leases: Leases, clock: Clock, caplog: pytest.LogCaptureFixture, trouble: Exception, said: str
) -> None:
    """A missing namespace, missing rights, no API server: one sentence with the remedy, calm tries, then it leads."""
    caplog.set_level(logging.INFO)
    leases.trouble = [trouble] * 6
    first = candidate(leases, "a")
    pauses = [first.attempt() for _ in range(6)]
    assert pauses == [1, 2, 4, 5, 5, 5]
    assert first.attempt() is None
    assert [said in message for message in caplog.messages] == [True, False]
    assert clock.now == 1000


def test_the_threads_of_it(monkeypatch: pytest.MonkeyPatch, leases: Leases, clock: Clock) -> None:
    """It renews by itself once it has won, stands while it does, says why it ends, and stops when it is told to."""
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(leadership, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(leadership, "GIVE_UP_SECONDS", 60)
    stop = threading.Event()
    first = candidate(leases, "a")
    assert first.win(stop)
    before = leases.writes
    until = time.monotonic() + 60
    while leases.writes < before + 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    stop.set()
    assert first.keep(stop) == ""
    first.resign(60)
    given = leases.writes
    time.sleep(0.1)
    assert (leases.writes, leases.holder()) == (given, "")
    second = candidate(leases, "b")
    stop.clear()
    assert second.win(stop)
    clock.now += 3600
    assert second.keep(stop).startswith("this controller leads no longer and ends: ")


def test_a_renewal_that_hangs_for_ever_does_not_keep_it_from_ending(
    monkeypatch: pytest.MonkeyPatch, leases: Leases, clock: Clock
) -> None:
    """A name server that never answers, say: no timeout covers it, and the deadline is watched all the same."""
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(leadership, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(leadership, "GIVE_UP_SECONDS", 0.1)
    hangs, go_on, stop = threading.Event(), threading.Event(), threading.Event()
    first = candidate(leases, "a")
    assert first.attempt() is None

    def hang(*_: object, **__: object) -> None:
        hangs.set()
        go_on.wait(120)
        raise Retry("at last")

    monkeypatch.setattr(leases, "replace_parts", hang)
    renewing = threading.Thread(target=first._renew_on)
    renewing.start()
    assert hangs.wait(60)
    clock.now += 15
    assert "ran out" in first.keep(stop)
    first.resign(1)
    assert leases.holder() == "a", "nor is it given up while its renewal is on its way"
    go_on.set()
    renewing.join(60)


def test_somebody_says_stop_before_it_leads(leases: Leases) -> None:
    """Then it never leads."""
    leader(leases, "a")
    stop = threading.Event()
    stop.set()
    assert not candidate(leases, "b").win(stop)
    assert leases.holder() == "a"


def test_no_two_processes_have_the_same_name() -> None:
    """Also not one that was started again on the same host."""
    assert identity() != identity()
