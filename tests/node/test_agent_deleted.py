"""The agent's pod is deleted in the middle of trials: the node is wholly what it was, or wholly what was confirmed.

While no agent runs, rules on trial expire by the kernel and sysctls on trial stay. So the node is judged once no trial
is open any more: after an agent that was told to end has taken its trial back, or the next one has that of one killed.
"""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.lab.by_hand import ByHand
from tests.lab.installed import AGENTS, NAMESPACE, Installed
from tests.lab.node_process import processes
from tests.lab.place import Place
from tests.lab.programs import wait_until

pytestmark = pytest.mark.tunes_this_machine

ROUNDS = 20
SOAK_SECONDS = 2
KEYS = ("max", "buckets", "tcp_timeout_time_wait", "tcp_timeout_close_wait", "udp_timeout", "icmp_timeout", "acct",
        "tcp_be_liberal")  # fmt: skip
LEARNING = ("exempt4", "exempt6")
"""Sets that packets add to: any connection from a port that a rule names, by chance also one to the API server."""
# Sizes of which none is within twice another, nor within twice the table's own: there buckets are left as they are, and
# what a wish comes to would not be the same each time.
WISHES: tuple[dict[str, Any], ...] = (
    {
        "table": {"size": {"maxEntries": 280_000}, "allowShrink": True},
        "timeouts": {"tcp": {"timeWait": 60}, "icmp": 20},
        "notrack": {"rules": [{"name": "web", "ports": [80]}]},
    },
    {
        "table": {"size": {"maxEntries": 580_000}, "allowShrink": True},
        "timeouts": {"tcp": {"timeWait": 30, "closeWait": 600}},
        "tcp": {"beLiberal": True},
        "notrack": {"rules": [{"name": "web", "ports": [80, "8000-8100"]}, {"name": "more", "ports": [9000]}]},
    },
    {
        "table": {"size": {"maxEntries": 1_200_000}, "allowShrink": True},
        "timeouts": {"udp": {"unreplied": 20}, "icmp": 10},
        "sysctls": {"nf_conntrack_acct": "1"},
        "notrack": {"rules": [{"name": "far", "ports": [8080], "peers": ["10.0.0.0/8"]}]},
    },
)


@pytest.fixture(scope="module")
def hand(installed: Installed) -> Iterator[ByHand]:
    """Give a way to write the agent's wishes."""
    hand = ByHand(installed)
    yield hand
    hand.close()


def kernel(place: Place) -> dict[str, Any]:
    """Return what the node's kernel has: the sysctls, and our table but for what it counts and learns by itself.

    Elements on trial have the time they have left with them, and so are like no confirmed ones.
    """
    paths = [f"/proc/sys/net/netfilter/nf_conntrack_{key}" for key in KEYS]
    values = place.on_node("cat", *paths[0 if place.can_size else 2 :]).stdout.split()
    listed = place.on_node("nft", "-j", "list", "table", "inet", "conntrack_operator").stdout
    found = [item for item in json.loads(listed)["nftables"] if "metainfo" not in item]
    for item in found:
        if item.get("set", {}).get("name") in LEARNING:
            item["set"].pop("elem", None)
    return {"values": values, "table": sorted(json.dumps(_lasting(item), sort_keys=True) for item in found)}


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if key not in {"handle", "packets", "bytes"}}
    if isinstance(value, list):
        return [_lasting(each) for each in value]
    return value


def wish(number: int, place: Place) -> dict[str, Any]:
    """Return the settings of a wish, without the table's size where nobody can write it."""
    settings = WISHES[number] | {"trial": {"timeoutSeconds": 30, "soakSeconds": 0}}
    return {name: value for name, value in settings.items() if name != "table" or place.can_size}


def tried(spec: dict[str, Any], turn: int) -> dict[str, Any]:
    """Return a spec of the controller's as another revision, one that is on trial for a while."""
    trial = {"timeoutSeconds": 30, "soakSeconds": SOAK_SECONDS}
    return spec | {"revision": f"{turn:012x}", "settings": spec["settings"] | {"trial": trial}}


def is_tried(hand: ByHand, spec: dict[str, Any]) -> bool:
    """Tell whether the agent has begun with a spec; where this process stood still meanwhile, it may be confirmed."""
    trial = hand.kept("journal").get("trial") or {}
    return spec["revision"] in {trial.get("revision"), hand.kept("confirmed").get("revision")}


def at_rest(hand: ByHand) -> dict[str, Any]:
    """Return what the kernel has while no trial is open, once that is so."""
    seen: list[dict[str, Any]] = []

    def holds() -> bool:
        before = hand.kept("journal")
        if before.get("trial") is not None:
            return False
        seen.append(kernel(hand.place))
        return hand.kept("journal") == before

    wait_until(holds, 120, "no trial is open", every=0.05)
    return seen[-1]


def delete(hand: ByHand, way: str) -> None:
    """End the agent: by `kubectl delete`, by the same with --force, or by SIGKILL before it.

    The kubelet may have started a killed one again in the same pod, which then ends a little later.
    """
    agents = {each.pid for each in processes(hand.place, "agent")}
    if way == "killed":
        for pid in agents:
            hand.place.on_node("kill", "-KILL", str(pid), check=False)
    force = [] if way == "asked" else ["--force", "--grace-period=0"]
    hand.place.kubectl("delete", "pods", "-n", NAMESPACE, "-l", AGENTS, "--wait=false", *force)
    wait_until(
        lambda: agents.isdisjoint(each.pid for each in processes(hand.place, "agent")), 60, "the agent has ended"
    )


def test_deleted_twenty_times_in_a_trial(place: Place, installed: Installed, hand: ByHand) -> None:
    """Each time with another wish on trial, at a random moment. The last wish then comes to be, its policy Ready."""
    whole, specs = [], []
    for number in range(len(WISHES)):
        installed.apply(hand.policy("web", **wish(number, place)))
        installed.wait_ready("web", 120)
        whole.append(at_rest(hand))
        specs.append(hand.node()["spec"])
    assert len({json.dumps(each) for each in whole}) == len(WISHES)
    moments = random.Random(7)
    confirmed, outcomes = len(WISHES) - 1, []
    wishes = {spec["revision"]: number for number, spec in enumerate(specs)}
    with hand.controller_away():
        for turn in range(ROUNDS):
            wanted = (confirmed + 1 + turn % 2) % len(WISHES)
            wait_until(lambda: len(processes(place, "agent")) == 1, 120, "an agent is there")
            spec = tried(specs[wanted], turn)
            wishes[spec["revision"]] = wanted
            hand.write(spec)
            wait_until(lambda spec=spec: is_tried(hand, spec), 120, "it is on trial", every=0.02)
            # Not always what was found last: a trial begun anew may have been confirmed before this wish came.
            confirmed = wishes[hand.kept("confirmed")["revision"]]
            time.sleep(moments.uniform(0, SOAK_SECONDS * 0.6))
            way = ("asked", "forced", "killed")[turn % 3]
            delete(hand, way)
            found = at_rest(hand)
            which = [number for number, each in enumerate(whole) if each == found]
            outcomes.append((turn, way, confirmed, wanted, which))
            assert which, f"{outcomes}: neither of the three wishes, wholly: {found}"
            assert which[0] in {confirmed, wanted}, outcomes
            confirmed = which[0]
    # An agent that was told to end begins the trial anew when it comes again; one that was killed left it at that.
    assert [each for each in outcomes if each[1] == "killed" and each[4] == [each[2]]], outcomes
    final = (confirmed + 1) % len(WISHES)
    installed.apply(hand.policy("web", **wish(final, place)))
    # The policy may be the one that is there already, Ready as it was before its controller went away.
    wanted = specs[final]["revision"]
    wait_until(lambda: hand.kept("confirmed").get("revision") == wanted, 120, "the last wish is confirmed")
    installed.wait_ready("web", 120)
    assert at_rest(hand) == whole[final]
    journal = hand.kept("journal")
    assert journal.get("trial") is None
    assert journal.get("failures") is None
