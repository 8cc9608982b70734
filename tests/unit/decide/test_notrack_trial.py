"""A trial as text leaves what is confirmed alone and expires whole; edits do no more than they must."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_operator.decide import notrack
from conntrack_operator.decide.intervals import merged, without
from conntrack_operator.decide.notrack_exemptions import SIZE, Exemption, elements_script
from conntrack_operator.decide.notrack_ruleset import ALIVE, Ruleset
from conntrack_operator.decide.notrack_table import LEARNED_SETS, Chain, Installed, installed_from
from conntrack_operator.model.notrack import NotrackRule


def _rule(name: str = "web", **fields: object) -> NotrackRule:
    return NotrackRule.model_validate({"name": name, "ports": ["8000-8100"], **fields})


_rules = st.lists(
    st.builds(
        NotrackRule,
        name=st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        protocol=st.sampled_from([None, "TCP", "UDP", "SCTP"]),
        side=st.sampled_from([None, "Server", "Forward"]),
        ports=st.lists(st.integers(1, 30), min_size=1, max_size=8),
        addresses=st.sampled_from([None, None, ["192.0.2.0/24"], ["192.0.2.0/24", "2001:db8::/32"]]),
        interfaces=st.sampled_from([None, None, ["eth0"], ["eth0", "eth1"]]),
    ),
    max_size=5,
    unique_by=lambda rule: rule.name,
)


def _parts(ruleset: Ruleset) -> Installed:
    return ruleset.expected or Installed()


@given(_rules, _rules)
def test_a_trial_leaves_what_is_confirmed_alone(confirmed: list[NotrackRule], wanted: list[NotrackRule]) -> None:
    """All chains and sets of the lasting table are in the table during the trial, unchanged to the rule."""
    lasting, during = _parts(notrack.ruleset_for(confirmed)), _parts(notrack.ruleset_for(confirmed, wanted))
    assert lasting.chains.items() <= during.chains.items()
    assert lasting.sets.items() <= during.sets.items()


@given(_rules, _rules)
def test_all_that_a_trial_adds_expires(confirmed: list[NotrackRule], wanted: list[NotrackRule]) -> None:
    """Every element has a timeout, and every base chain looks first whether the trial is alive."""
    during = notrack.ruleset_for(confirmed, wanted)
    lasting = _parts(notrack.ruleset_for(confirmed))
    if during.on_trial is None:
        assert during == notrack.ruleset_for(confirmed)
        return
    added = {name: found for name, found in _parts(during).sets.items() if name not in lasting.sets}
    assert ALIVE in added
    for name, contents in added.items():
        assert contents.intervals == contents.names == ()
        assert "timeout" in contents.flags
        assert name.startswith("trial_") != (name in LEARNED_SETS)
    for name, chain in _parts(during).chains.items():
        if name not in lasting.chains and chain.type is not None:
            assert name.startswith("trial_")
            assert chain.rules[0].startswith("trial is over ")
    script = during.beginning(1.5)
    for elements in re.findall(r"elements = \{ (.*) \}", script):
        assert all(element.endswith(" timeout 1500ms") for element in elements.split(", "))


@given(_rules, _rules)
def test_a_trial_holds_what_is_wanted_and_not_confirmed(
    confirmed: list[NotrackRule], wanted: list[NotrackRule]
) -> None:
    """Shared sets on trial hold the difference, so that no packet is counted twice; rules on trial lack nothing."""
    during = notrack.ruleset_for(confirmed, wanted)
    there, result = _parts(notrack.ruleset_for(confirmed)), _parts(notrack.ruleset_for(wanted))
    for name, contents in result.sets.items():
        if name.startswith("confirmed_"):
            before = there.sets[name].intervals if name in there.sets else ()
            on_trial = _parts(during).sets.get("trial_" + name.removeprefix("confirmed_"))
            assert (on_trial.timed if on_trial else ()) == without(contents.intervals, before)
    assert during.missing_from(during.expected) == ()


def test_a_trial_that_expired_lacks_what_it_added() -> None:
    """Without its timed elements the new rule is missing, and only that one; the trial does not run."""
    during = notrack.ruleset_for([_rule()], [_rule(), _rule("tls", ports=[443]), _rule("dns", protocol="UDP")])
    assert during.is_running_in(during.expected)
    sets = {
        name: found if not found.timed and not found.timed_names else type(found)(found.type, found.flags)
        for name, found in during.expected.sets.items()
    }
    expired = Installed(during.expected.chains, sets)
    assert not during.is_running_in(expired)
    assert not during.is_running_in(None)
    assert sorted(during.missing_from(expired)) == ["dns", "tls"]


def _listed(ruleset: Ruleset, elements: dict[str, list[object]] | None = None) -> Installed:
    """Return the table of `ruleset` as a listing shows it, with handles from 1 and counters at (handle, 100)."""
    items: list[dict[str, object]] = []
    for name, found in ruleset.expected.sets.items():
        kind = found.type.split(" . ")
        each = {"name": name, "type": kind if len(kind) > 1 else kind[0], "flags": list(found.flags)}
        each |= {"size": found.size, "timeout": found.timeout}
        each["elem"] = (elements or {}).get(name, [{"range": list(pair)} for pair in found.intervals])
        items.append({"set": each})
    handle = 0
    for name, chain in ruleset.expected.chains.items():
        place = {"type": chain.type, "hook": chain.hook, "prio": chain.priority, "policy": chain.policy}
        items.append({"chain": {"name": name, **place}})
        for comment in chain.rules:
            handle += 1
            counter = [{"counter": {"packets": handle, "bytes": 100}}]
            items.append({"rule": {"chain": name, "handle": handle, "comment": comment, "expr": counter}})
    return installed_from({"nftables": items})


def _edits(script: str, name: str) -> list[str]:
    return [line for line in script.splitlines() if name in line.split()]


POOL = "confirmed_udp_server"

EDITS = (
    (["8000-8100"], ["8000-8100"], []),
    (["8000-8100"], ["8000-8200"], ["add {8101-8200}"]),
    (["8000-8100"], ["7000-8200"], ["add {7000-7999, 8101-8200}"]),
    (["8000-8100"], ["8000-8050"], ["delete {8000-8100}", "add {8000-8050}"]),
    (["8000-8100"], ["8050", "9000"], ["delete {8000-8100}", "add {8050, 9000}"]),
    ([80, 443], [80], ["delete {443}"]),
    ([80, 443], [80, 8080], ["delete {443}", "add {8080}"]),
    (["1-9", *range(11, 151, 2)], ["1-9"], ["flush", "add {1-9}"]),
)


@pytest.mark.parametrize(("before", "after", "commands"), EDITS)
def test_a_set_is_edited_no_more_than_it_must(
    before: list[int | str], after: list[int | str], commands: list[str]
) -> None:
    """Widening only adds; narrowing takes the whole interval and puts back what is left."""
    one, other = (notrack.ruleset_for([_rule(protocol="UDP", ports=ports)]) for ports in (before, after))
    expected = [
        f"{verb} element inet conntrack_operator {POOL} {{ {elements[1:-1]} }}"
        if elements
        else f"{verb} set inet conntrack_operator {POOL}"
        for verb, _, elements in (command.partition(" ") for command in commands)
    ]
    assert _edits(other.edit(_listed(one)), POOL) == expected


def test_intervals_that_touch_are_known_as_what_they_are() -> None:
    """Of two that the kernel holds side by side only the one that loses ports is deleted."""
    one = notrack.ruleset_for([_rule(protocol="UDP", ports=["8000-8200"])])
    found = _listed(one, {POOL: [{"range": [8000, 8100]}, {"range": [8101, 8200]}]})
    assert found == one.expected
    assert one.edit(found) == ""
    narrower = notrack.ruleset_for([_rule(protocol="UDP", ports=["8000-8150"])])
    assert _edits(narrower.edit(found), POOL) == [
        f"delete element inet conntrack_operator {POOL} {{ 8101-8200 }}",
        f"add element inet conntrack_operator {POOL} {{ 8101-8150 }}",
    ]


def test_an_edited_rule_takes_its_place_and_its_count() -> None:
    """The rule for errors has another digest for other ports; it stands where the old one stood and counts on."""
    one, other = (notrack.ruleset_for([_rule(protocol="UDP", ports=ports)]) for ports in ([80], [81]))
    found = _listed(one)
    edits = _edits(other.edit(found), "prerouting_errors4")
    (handle,) = found.chains["prerouting_errors4"].handles
    assert re.fullmatch(
        rf"add rule inet conntrack_operator prerouting_errors4 .* counter packets {handle} bytes 100 notrack accept .*",
        edits[0],
    )
    assert edits[1:] == [f"delete rule inet conntrack_operator prerouting_errors4 handle {handle}"]
    assert _edits(other.edit(found), "prerouting") == []


REPLACED = (
    {"flags": ("dormant",)},
    {"foreign": ("counter x",)},
    {"chains": {"prerouting": Chain((), "filter", "prerouting", 0, "accept")}},
    {"chains": {"prerouting": Chain()}},
)


@pytest.mark.parametrize("damage", REPLACED)
def test_what_no_edit_can_mend_is_replaced(damage: dict[str, object]) -> None:
    """A table switched off, things we never make, and a chain of ours in another place: the table is made anew."""
    ruleset = notrack.ruleset_for([_rule()])
    installed = Installed(**{"chains": ruleset.expected.chains, "sets": ruleset.expected.sets, **damage})
    assert ruleset.edit(installed) == ruleset.script()
    assert ruleset.newly_exempting(installed) == ((8000, 8100),)


def test_only_added_ports_of_tcp_servers_need_exemptions() -> None:
    """What was untracked before has taught its exemptions; UDP, Client and Forward have none."""
    before = notrack.ruleset_for([_rule()])
    after = notrack.ruleset_for(
        [
            _rule(ports=["8050-8200"]),
            _rule("own", ports=[9000], addresses=["192.0.2.1"]),
            _rule("dns", protocol="UDP", ports=[53]),
            _rule("db", side="Client", ports=[5432], addresses=["192.0.2.1"]),
            _rule("router", side="Forward", ports=[8443]),
        ]
    )
    assert after.exempting_ports == merged([(8050, 8200), (9000, 9000)])
    assert after.newly_exempting(_listed(before)) == ((8101, 8200), (9000, 9000))
    assert after.newly_exempting(None) == after.exempting_ports


def test_exemptions_as_commands() -> None:
    """One command for each IP version; no more than half of a set is written at once."""
    assert elements_script("t", []) == ""
    both = [Exemption("192.0.2.1", 443, 8000), Exemption("2001:db8::1", 443, 8001)]
    assert elements_script("t", both).splitlines() == [
        "add element inet t exempt4 { 192.0.2.1 . 443 . 8000 timeout 86400s }",
        "add element inet t exempt6 { 2001:db8::1 . 443 . 8001 timeout 86400s }",
    ]
    many = (Exemption("192.0.2.1", far, own) for far in (443, 444) for own in range(1, 65536))
    assert elements_script("t", many).count("timeout") == SIZE // 2
