"""The pods as a security reviewer sees them from the node, and what becomes of the node when they are replaced."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.lab.helm import CHART
from tests.lab.image import OTHER_VERSION
from tests.lab.installed import AGENTS, CONTROLLERS, NAMESPACE, RELEASE, Installed
from tests.lab.node_process import Process, processes
from tests.lab.place import Place
from tests.lab.programs import wait_until

from conntrack_operator import __version__

NET_ADMIN = 1 << 12  # include/uapi/linux/capability.h
NOBODY = 65532
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
POLICY: dict[str, Any] = {
    "apiVersion": "conntrack-operator.io/v1alpha1",
    "kind": "ConntrackPolicy",
    "metadata": {"name": "web"},
    "spec": {
        "mode": "Enforce",
        "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
        "timeouts": {"tcp": {"timeWait": 30}},
        "notrack": {"rules": [{"name": "web", "ports": [80, "8000-8100"]}]},
        "trial": {"soakSeconds": 0},
        "rollout": {"canary": 0, "soakSeconds": 0},
    },
}


@pytest.fixture(scope="module")
def tuned(installed: Installed) -> Installed:
    """Give the operator with a policy in force."""
    installed.apply(POLICY)
    installed.wait_ready("web", 90)
    return installed


@pytest.fixture
def agent(place: Place, tuned: Installed) -> Process:
    """Give the agent's one process, with the policy in force."""
    tuned.wait_ready("web", 90)
    (agent,) = processes(place, "agent")
    return agent


def test_the_agent_has_net_admin_and_nothing_else(agent: Process) -> None:
    """Root by number, with one capability, no way to gain another, and the runtime's filter of system calls."""
    assert agent.status("Uid").split() == ["0"] * 4
    sets = {name: int(agent.status(name), 16) for name in SETS}
    assert sets == {"CapInh": 0, "CapPrm": NET_ADMIN, "CapEff": NET_ADMIN, "CapBnd": NET_ADMIN, "CapAmb": 0}
    assert agent.status("NoNewPrivs") == "1"
    assert agent.status("Seccomp") == "2"


def test_the_agent_can_write_two_folders(place: Place, tuned: Installed, agent: Process) -> None:
    """Its root is read-only; of the host it has the sysctls of the network and its own folder, and no more."""
    mounts = agent.mounts()
    assert "ro" in mounts["/"]
    # Beside these the kubelet's hosts file and what every container has: /proc, and devices in memory.
    writable = {path for path, options in mounts.items() if "rw" in options and not path.startswith(("/proc", "/dev"))}
    assert writable - {"/etc/hosts", "/sys/fs/cgroup"} == {"/host/proc/sys/net", "/var/lib/conntrack-operator"}
    assert "ro" in mounts["/proc/sys"]
    pod = tuned.agent()
    folders = [volume["hostPath"]["path"] for volume in pod["spec"]["volumes"] if "hostPath" in volume]
    assert folders == ["/proc/sys/net", "/var/lib/conntrack-operator"]
    for path in ("/x", "/tmp/x", "/etc/x", "/opt/conntrack-operator/x"):
        said = place.kubectl("exec", "-n", NAMESPACE, pod["metadata"]["name"], "--", "touch", path, check=False)
        assert "Read-only file system" in said.stderr, path


def test_the_controllers_have_nothing(place: Place, tuned: Installed) -> None:
    """No capability, a user without a name, a read-only root with an own /tmp. Nothing went wrong in them so."""
    found = processes(place, "controller")
    assert len(found) == 2
    for controller in found:
        assert controller.status("Uid").split() == [str(NOBODY)] * 4
        assert controller.status("Gid").split() == [str(NOBODY)] * 4
        assert {int(controller.status(name), 16) for name in SETS} == {0}
        assert controller.status("NoNewPrivs") == "1"
        assert controller.status("Seccomp") == "2"
        mounts = controller.mounts()
        assert "ro" in mounts["/"]
        writable = {path for path, options in mounts.items() if "rw" in options}
        mine = {path for path in writable if not path.startswith(("/proc", "/dev"))}
        assert mine - {"/etc/hosts", "/sys/fs/cgroup"} == {"/tmp"}
    for pod in tuned.pods(CONTROLLERS):
        name = pod["metadata"]["name"]
        assert tuned.complaints(name) == [], name
        # The image has a name for few users, and for this one it has none.
        names = place.kubectl("exec", "-n", NAMESPACE, name, "--", "cat", "/etc/passwd").stdout
        assert f":{NOBODY}:" not in names


def test_a_change_writes(place: Place, tuned: Installed) -> None:
    """What the next two tests look for, and must not see, is seen when there is something to write."""
    spec = POLICY["spec"] | {
        "timeouts": {"tcp": {"timeWait": 31}},
        "notrack": {"rules": [{"name": "web", "ports": [81]}]},
    }
    with place.writes() as writes:
        tuned.apply(POLICY | {"spec": spec})
        tuned.wait_ready("web", 90)
        seen = ours(writes.seen())
    assert "nf_conntrack_tcp_timeout_time_wait" in seen
    assert [each for each in seen if " inet conntrack_operator " in each]


def test_a_restart_writes_nothing(place: Place, tuned: Installed) -> None:
    """An agent that finds the node as it was confirmed touches neither sysctls nor rules, and says Current."""
    tuned.wait_ready("web", 90)
    before = tuned.agent()["metadata"]["name"]
    with place.writes() as writes:
        place.kubectl("delete", "pod", "-n", NAMESPACE, before)
        after = tuned.wait_agent(besides=before)
        wait_until(lambda: acted(place, after["metadata"]["name"]), 120, "the new agent has looked at its wish")
        assert ours(writes.seen()) == []
    assert tuned.status()["phase"] == "Current"
    tuned.wait_ready("web", 90)


def ours(seen: list[str]) -> list[str]:
    """Return the writes that may be an agent's: not those for pods that come and go, of kube-proxy and CNI's bridge."""
    theirs = re.compile(r"^# new generation| ip6? (nat (CNI-|POSTROUTING)|kube-proxy )")
    return [each for each in seen if not theirs.search(each)]


def acted(place: Place, pod: str) -> bool:
    """Tell whether an agent has carried out a wish, be it with nothing to do."""
    said = place.kubectl("logs", "-n", NAMESPACE, pod, check=False).stdout
    return re.search(r"revision \w+, Apply: Current, 0 changes", said) is not None


@pytest.fixture(scope="module")
def other(place: Place, archive_of: Callable[[str], Path]) -> str:
    """Give the tag of another image, which is on the node."""
    place.add_image(archive_of(OTHER_VERSION))
    return OTHER_VERSION


def test_an_upgrade_and_a_downgrade_write_nothing(place: Place, tuned: Installed, other: str) -> None:
    """`helm upgrade` to another image and back: other agents each time, and the kernel is not touched."""
    tuned.wait_ready("web", 90)
    with place.writes() as writes:
        digests = {digest(tuned)}
        for tag in (other, __version__):
            before = tuned.agent()["metadata"]["name"]
            tuned.helm(
                "upgrade", RELEASE, str(CHART), "-n", NAMESPACE, f"--set=image.tag={tag}", "--wait",
                "--timeout=120s",
            )  # fmt: skip
            after = tuned.wait_agent(120, besides=before)
            assert after["spec"]["containers"][0]["image"].endswith(f":{tag}")
            name = after["metadata"]["name"]
            wait_until(lambda name=name: acted(place, name), 120, "the new agent has looked at its wish")
            tuned.wait_ready("web", 90)
            digests.add(digest(tuned))
        assert ours(writes.seen()) == []
    assert len(digests) == 2
    assert tuned.status()["phase"] == "Current"
    assert len(tuned.pods(AGENTS)) == 1


def digest(operator: Installed) -> str:
    """Return what the agent's image is known by."""
    return str(operator.agent()["status"]["containerStatuses"][0]["imageID"])
