"""Observe, Enforce, Observe again on a real kernel: what was previewed is what changes, and all of it goes back."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.cases import GOOD
from tests.lab.examples import CLOSED, EXAMPLES, example
from tests.lab.host import SHARED, Host, missing
from tests.lab.namespaces import Lab, Namespace

from conntrack_operator.agent.duty import Duty
from conntrack_operator.agent.machine import Machine
from conntrack_operator.decide.merge import merged
from conntrack_operator.decide.notrack import description_of
from conntrack_operator.decide.plan import Plan
from conntrack_operator.kernel.accepts import read_accepts
from conntrack_operator.kernel.journal import StateDirectory
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.sysctl import read_sysctls
from conntrack_operator.model.node import NodeSpec
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.reading import policy_from

POLICIES = [*EXAMPLES, *(case.path for case in GOOD)]


def settings_in(path: Path) -> Settings:
    """Return a policy's settings; ports stand for the pods that a cluster would find, and no soak for any."""
    settings = merged([policy_from(example(path))]).settings.document()
    return Settings.model_validate({**settings, "trial": {"timeoutSeconds": 60, "soakSeconds": 0}})


def different() -> dict[str, Settings]:
    """Return the settings of examples and corpus by file, each but once: many files differ in something else."""
    found: dict[str, Settings] = {}
    for path in POLICIES:
        settings = settings_in(path)
        if settings not in found.values():
            found[path.stem] = settings
    return found


def rules_in_force(machine: Machine) -> dict[str, NotrackRule]:
    """Return the rules that the node's journal names."""
    return {name: applied.rule for name, applied in machine.journal().applied_rules.items()}


def accepting() -> str:
    """Return what of ours stands in the firewall of these tests, in the words of a preview."""
    number = sum(len(chain) for chain in read_accepts().chains.values())
    return f"{number} accept rule{'' if number == 1 else 's'} in nftables inet filter" if number else "absent"


def obeyed(duty: Duty, mode: str, settings: Settings, preview: Settings | None) -> str:
    """Let the node do what it is told; return the phase it ends in."""
    revision = f"{mode} {settings.model_dump_json()}"
    duty.wish(
        NodeSpec.model_validate({"revision": revision, "mode": mode, "nodeUID": ""}).model_copy(
            update={"settings": settings, "preview": preview}
        )
    )
    deadline = time.monotonic() + 120
    assert duty.deed
    while duty.deed.phase == "Trial":
        assert time.monotonic() < deadline
        time.sleep(min(0.05, duty.seconds_to_step))
        duty.step()
    return duty.deed.phase


def there_and_back(duty: Duty, node: Namespace, settings: Settings, shared: tuple[str, ...] = SHARED) -> Plan:
    """Preview, enforce and observe again; what was said is what happens, and nothing is left."""

    def looked() -> tuple[dict[str, int], str]:
        values = read_sysctls(duty.machine.roots)
        return {name: value for name, value in values.items() if name not in shared}, node.run(
            "nft", "-s", "list", "ruleset"
        ).stdout

    before = looked()
    assert obeyed(duty, "Hold", Settings(), settings) == "Current"
    assert looked() == before
    assert duty.deed
    preview = duty.deed.preview
    assert preview
    phase = obeyed(duty, "Apply", settings, None)
    after, rules = looked()[0], rules_in_force(duty.machine)
    done: dict[str, Any] = {name: (before[0][name], after[name]) for name in after if after[name] != before[0][name]}
    done |= {f"notrack/{name}": ("absent", description_of(rule)) for name, rule in rules.items()}
    if accepting() != "absent":
        done["notrack.acceptUntracked"] = ("absent", accepting())
    foreseen = {each.setting: (each.from_, each.to) for each in preview.changes if each.setting not in shared}
    assert done == foreseen
    refused = {(each.setting, each.reason) for each in preview.refused}
    assert {(each.setting, each.reason) for each in duty.deed.results if each.reason != "Applied"} == refused
    assert phase == ("Refused" if refused else "Current")
    known = {(each.setting, each.reason) for each in preview.warnings if each.reason not in {"NotTested", "NotLoaded"}}
    assert {(each.setting, each.reason) for each in duty.deed.warnings} == known
    assert obeyed(duty, "Restore", Settings(), settings) == "Restored", duty.deed.results
    assert looked() == before
    assert duty.deed.preview
    assert duty.deed.preview.changes == preview.changes
    assert duty.deed.preview.refused == preview.refused
    return preview


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """Return the real /proc and directories of our own."""
    return Roots(state=tmp_path / "state", etc=tmp_path, usr=tmp_path, run=tmp_path)


@pytest.mark.parametrize("firewall", ["", CLOSED], ids=["no firewall", "closed"])
def test_every_example_and_the_corpus(netns: Lab, roots: Roots, firewall: str) -> None:
    """One node takes all of them one after another, and is the same after each."""
    node = netns.namespace()
    if firewall:
        node.nft(firewall)
    with node.inside(), StateDirectory(roots) as state:
        duty, foreseen = Duty(Machine(roots), state, list), set[str]()
        for name, settings in different().items():
            print(name)  # for whoever reads what failed
            foreseen |= {each.setting for each in there_and_back(duty, node, settings).changes}
    assert ("notrack.acceptUntracked" in foreseen) == bool(firewall)


BASE: dict[str, Any] = {
    "timeouts": {"icmp": 10, "generic": 500},
    "notrack": {"rules": [{"name": "web", "ports": [80]}, {"name": "db", "ports": [5432]}]},
}
MORE: dict[str, Any] = {
    "more of the same": {"timeouts": {"icmp": 12, "tcp": {"timeWait": 30}}},
    "another rule": {
        "notrack": {"rules": [*BASE["notrack"]["rules"], {"name": "dns", "protocol": "UDP", "ports": [53]}]}
    },
    "a rule with other ports": {
        "notrack": {"rules": [{"name": "web", "ports": [80, 443]}, BASE["notrack"]["rules"][1]]}
    },
    "a rule the less": {"notrack": {"rules": BASE["notrack"]["rules"][:1]}},
    "a rule that is refused": {
        "notrack": {
            "rules": [
                *BASE["notrack"]["rules"],
                {"name": "api", "side": "Client", "ports": [443], "addresses": ["192.0.2.1"]},
            ]
        }
    },
    "accepts of both ways": {
        "notrack": {
            "rules": [*BASE["notrack"]["rules"], {"name": "https", "ports": [443]}],
            "acceptUntracked": "Both",
            "dropExisting": True,
        }
    },
    "tracking off": {"tracking": "Disabled"},
}

ACCEPTING = ("another rule", "a rule with other ports", "a rule the less", "accepts of both ways")
"""Those of them that change the accept rules in the firewall."""


@pytest.mark.parametrize("name", MORE)
def test_beside_an_enforced_policy(netns: Lab, roots: Roots, name: str) -> None:
    """What an Observe policy would add to what is in force, and only that, and the node is as before without it."""
    node, quick = netns.namespace(), {"trial": {"timeoutSeconds": 60, "soakSeconds": 0}}
    node.nft(CLOSED)
    base, both = Settings.model_validate(BASE | quick), Settings.model_validate(BASE | MORE[name] | quick)
    with node.inside(), StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, list)

        def looked() -> dict[str, Any]:
            values: dict[str, Any] = dict(read_sysctls(roots))
            rules = {f"notrack/{name}": description_of(rule) for name, rule in rules_in_force(duty.machine).items()}
            return {key: value for key, value in (values | rules).items() if key not in SHARED}

        assert obeyed(duty, "Apply", base, both) == "Current"
        before, table = looked(), node.run("nft", "-s", "list", "ruleset").stdout
        standing, said = read_accepts(), accepting()
        assert duty.deed
        preview = duty.deed.preview
        assert preview
        obeyed(duty, "Apply", both, None)
        after = looked()
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        done = {key: (before.get(key, "absent"), after.get(key, "absent")) for key in changed}
        if read_accepts() != standing:
            now = accepting()
            done["notrack.acceptUntracked"] = (said, now if now != said else f"{now}, others than now")
        assert ("notrack.acceptUntracked" in done) == (name in ACCEPTING)
        assert done == {each.setting: (each.from_, each.to) for each in preview.changes}
        refused = {(each.setting, each.reason) for each in preview.refused}
        assert {(each.setting, each.reason) for each in duty.deed.results if each.reason != "Applied"} == refused
        assert done or refused
        assert obeyed(duty, "Apply", base, both) == "Current"
        assert (looked(), node.run("nft", "-s", "list", "ruleset").stdout) == (before, table)
        assert duty.deed.preview
        assert duty.deed.preview.changes == preview.changes


@pytest.fixture
def host() -> Iterator[Host]:
    """Give this machine, locked for us alone, with a small table; put back at the end."""
    if reason := missing():
        pytest.skip(reason)
    with Host() as locked:
        locked.shrink(131_072)
        yield locked


SIZES: dict[str, Any] = {
    "grown": {"size": {"maxEntries": 262_144}},
    "rounded": {"size": {"maxEntries": 400_001}, "entriesPerBucket": 2},
    "one bucket for eight": {"size": {"maxEntries": 200_000}, "entriesPerBucket": 8},
    "per core": {"size": {"perCore": {"entries": 131_072, "floor": 200_000}}},
    "of the memory": {"size": {"memory": {"percent": 2, "floor": 262_144, "ceiling": 524_288}}},
    "shrunk": {"size": {"maxEntries": 65_536}, "allowShrink": True},
    "shrunk without leave": {"size": {"maxEntries": 65_536}},
    "as it is": {"size": {"maxEntries": 131_072}},
    "more than there is memory": {"size": {"maxEntries": 2_000_000_000}},
}


@pytest.mark.tunes_this_machine
def test_every_size(host: Host, roots: Roots) -> None:
    """The kernel rounds buckets up to a page's worth: what is previewed is what it will show."""
    with StateDirectory(roots) as state:
        duty = Duty(Machine(roots), state, list)
        for name, table in SIZES.items():
            print(name)
            settings = Settings.model_validate({"table": table, "trial": {"timeoutSeconds": 60, "soakSeconds": 0}})
            there_and_back(duty, host, settings, ("net.netfilter.nf_conntrack_count",))
