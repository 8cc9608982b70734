"""doctor on real tables: full ones, drops while it looks, other namespaces, BPF maps, and what it may not see."""

import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.entries import ESTABLISHED, TIME_WAIT, UDP, Entry, inject_many
from tests.lab.host import Host
from tests.lab.namespaces import NAMESPACES, Lab, Namespace

from conntrack_operator.cli.doctor import read_symptoms
from conntrack_operator.cli.main import main
from conntrack_operator.decide.diagnosis import Diagnosis, diagnose
from conntrack_operator.decide.symptoms import PinnedMap, PortTraits
from conntrack_operator.kernel import ethtool, pinned_maps
from conntrack_operator.kernel.addresses import local_addresses
from conntrack_operator.kernel.counters import read_counters
from conntrack_operator.kernel.flow_traits import read_traits
from conntrack_operator.kernel.kernel_log import KMSG, read_kernel_log
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.reading import policy_from

pytestmark = pytest.mark.tunes_this_machine

LIMIT = 8192
FINISHED = Entry("10.0.0.1", "192.0.2.1", state=TIME_WAIT, timeout_seconds=110)
LASTING = Entry("10.0.0.1", "192.0.2.1", state=ESTABLISHED)
"""Of a table full of these the kernel's collector takes nothing, as it does of FINISHED within a minute of a drop."""


@pytest.fixture
def small() -> Iterator[Host]:
    """Make the machine's limit small enough to be reached, while no other test changes it."""
    with Host() as host:
        host.shrink(LIMIT)
        yield host


def doctor(namespace: Namespace, *options: str, prefix: tuple[str, ...] = ()) -> dict:
    """Run the command in a namespace; it must exit 0, whatever it found."""
    command = (*prefix, sys.executable, "-m", "conntrack_operator", "doctor", "-o", "json", *options)
    return json.loads(namespace.run(*command).stdout)


def reasons(document: dict) -> dict[str, str]:
    """Return reason -> severity."""
    return {finding["reason"]: finding["severity"] for finding in document["findings"]}


def examine(namespace: Namespace, seconds: float = 0.0) -> Diagnosis:
    """Diagnose a namespace from within this process."""
    with namespace.inside():
        return diagnose(read_symptoms(Roots(), seconds))


def knock(namespace: Namespace, count: int = 50) -> None:
    """Begin `count` new flows, which a full table refuses."""
    with namespace.make_socket(kind=socket.SOCK_DGRAM) as sender:
        for number in range(count):
            with contextlib.suppress(OSError):
                sender.sendto(b"x", ("127.0.0.1", 9000 + number))


@pytest.mark.usefixtures("small")
def test_an_empty_table_is_well(netns: Lab) -> None:
    """Nothing in it, nothing lost: no finding about this table, and no policy."""
    document = doctor(netns.namespace())
    assert document["verdict"].startswith("Not full: 0% of 8,192 entries used, nothing lost.")
    assert document["policy"] is None
    assert document["usage"]["entries"] == 0
    assert document["usage"]["maxEntries"] == LIMIT
    # The log may tell of other tests' namespaces; nothing may be said of this one.
    assert set(reasons(document)) <= {"AnotherTableWasFull", "OtherNamespaceFull", "NotTheHost", "AlsoWritten"}


@pytest.mark.usefixtures("small")
def test_full_of_finished_connections(netns: Lab) -> None:
    """A table full of TIME_WAIT that dropped some: said so, with the state, the port, and a policy that is valid.

    The kernel's collector may have come by and made a little room, before the last of 50 and since.
    """
    namespace = netns.namespace()
    namespace.track()
    inject_many(namespace, FINISHED, LIMIT, sources=50)
    knock(namespace)
    document = doctor(namespace)
    found = reasons(document)
    with namespace.inside():
        lost = read_counters().drop
    assert 1 <= lost <= 50
    assert document["findings"][0]["reason"] in {"TableFull", "TableNearlyFull"}
    assert document["verdict"].endswith(f", {lost} packets lost.")
    assert document["verdict"] == document["findings"][0]["summary"]
    assert document["usage"]["lostToFull"] == document["usage"]["counters"]["drop"] == lost
    assert found["FinishedConnections"] == found["OnePort"] == "warning"
    assert "OneSource" not in found
    assert document["usage"]["top"]["state"][0]["key"] == "TCP TIME_WAIT"
    policy = policy_from(document["policy"])
    assert policy.spec.table.size.memory.percent == 2
    assert policy.spec.timeouts is None, "timeouts of this namespace are not the host's"


@pytest.mark.usefixtures("small")
def test_full_of_one_idle_source(netns: Lab) -> None:
    """One source, connections silent for days: both are said, from the entries' own clocks."""
    namespace = netns.namespace()
    like = Entry("10.0.0.1", "192.0.2.1", state=ESTABLISHED, destination_port=5432, timeout_seconds=100_000)
    inject_many(namespace, like, LIMIT, sources=1)
    found = reasons(doctor(namespace))
    assert found["IdleConnections"] == found["OneSource"] == found["OnePort"] == "warning"


@pytest.mark.usefixtures("small")
def test_busy_connections_are_not_idle(netns: Lab) -> None:
    """The same table with packets a minute ago: nobody calls it idle."""
    namespace = netns.namespace()
    like = Entry("10.0.0.1", "192.0.2.1", state=ESTABLISHED, timeout_seconds=432_000 - 60)
    inject_many(namespace, like, LIMIT, sources=10)
    assert "IdleConnections" not in reasons(doctor(namespace))


@pytest.mark.usefixtures("small")
def test_thrown_out_and_not_dropped(netns: Lab) -> None:
    """A table full of unanswered UDP throws entries out and drops nothing: it was full all the same."""
    namespace = netns.namespace()
    namespace.track()
    for turn in range(3):
        with namespace.inside():
            counted = read_counters()
        if counted.early_drop >= 45:
            break
        # The kernel's collector makes room in such a table, too, now and then: it is filled to the brim again.
        like = Entry(f"10.{turn}.0.1", "192.0.2.1", UDP, status=0, timeout_seconds=300)
        inject_many(namespace, like, max(0, LIMIT - counted.entries), sources=50)
        knock(namespace)
    document = doctor(namespace)
    found = reasons(document)
    assert document["usage"]["counters"]["earlyDrop"] >= 45
    assert "TableFull" in found or "TableNearlyFull" in found or "TableWasFull" in found
    assert found["UnansweredUDP"] == "warning"


@pytest.mark.usefixtures("small")
def test_drops_while_it_looks(netns: Lab) -> None:
    """Connections refused in the very second of looking are counted as now."""
    namespace = netns.namespace()
    namespace.track()
    inject_many(namespace, LASTING, LIMIT, sources=50)
    knock(namespace, 5)
    over = threading.Event()

    def keep_knocking() -> None:
        while not over.is_set():
            knock(namespace, 20)
            over.wait(0.05)

    thread = threading.Thread(target=keep_knocking)
    thread.start()
    try:
        for _ in range(20):  # the other thread may have stood still
            diagnosis = examine(namespace, seconds=0.5)
            if said := re.search(r"packets lost in \d+ s", diagnosis.verdict):
                break
    finally:
        over.set()
        thread.join()
    assert said, diagnosis.verdict


@pytest.mark.usefixtures("small")
def test_was_full_and_is_not(netns: Lab) -> None:
    """After a flush the counters still tell: was full, now nearly empty."""
    if shutil.which("conntrack") is None:
        pytest.skip("not installed: conntrack")
    namespace = netns.namespace()
    namespace.track()
    inject_many(namespace, LASTING, LIMIT, sources=50)
    knock(namespace)
    namespace.run("conntrack", "-F")
    document = doctor(namespace)
    assert document["verdict"] == "The table was full, 50 packets lost; now 0% are used."


def test_another_namespaces_table_is_named(netns: Lab, small: Host) -> None:
    """Seen from the host, whose own table is empty: the namespace that is full, by name, and a higher limit."""
    pod = netns.namespace()
    pod.track()
    inject_many(pod, LASTING, LIMIT, sources=50)
    knock(pod)
    diagnosis = examine(small)
    (finding,) = [
        each for each in diagnosis.findings if each.reason == "OtherNamespaceFull" and pod.name in each.summary
    ]
    assert finding.severity == "critical"
    assert f"netns {pod.name}, 8,192 of 8,192 entries" in finding.summary
    assert "lost 50 packets" in finding.detail
    assert diagnosis.policy["spec"]["table"] == {"size": {"memory": {"percent": 2}}}


def test_a_process_names_its_namespace(netns: Lab, small: Host) -> None:
    """A namespace with a process in it is known by that process."""
    pod = netns.namespace()
    process = pod.start("sleep", "3600")
    inject_many(pod, LASTING, LIMIT, sources=50)
    diagnosis = examine(small)
    assert any(f"sleep (pid {process.pid}), 8,192 of 8,192" in finding.summary for finding in diagnosis.findings)


def test_looking_leaves_us_where_we_were(netns: Lab) -> None:
    """The thread that visits other namespaces does not take this one along."""
    namespace = netns.namespace()
    netns.namespace()
    with namespace.inside():
        before = Path("/proc/thread-self/ns/net").stat().st_ino
        symptoms = read_symptoms(Roots(), 0)
        assert Path("/proc/thread-self/ns/net").stat().st_ino == before
    assert symptoms.elsewhere.namespaces


@pytest.mark.usefixtures("small")
def test_the_kernel_log_names_this_table(netns: Lab) -> None:
    """Lines of the real log about this namespace, no older by the wall clock than it is full."""
    if read_kernel_log().problem:
        pytest.skip(f"no kernel log here: {read_kernel_log().problem}")
    namespace = netns.namespace()
    sleeping = namespace.start(
        "sleep", "3600"
    )  # its start tells the log's lines of a namespace that had this number before
    namespace.track()
    inject_many(namespace, LASTING, LIMIT, sources=50)
    lines = ()
    began = time.monotonic()
    for _ in range(15):  # the kernel prints ten such lines in 5 s for the whole machine
        knock(namespace)
        symptoms = _symptoms_by_a_process_of(namespace)
        lines = symptoms["kernelLog"]["lines"]
        if symptoms["own"]:
            break
    assert lines
    assert symptoms["own"], "no line of the log names this namespace"
    passed = time.monotonic() - began
    assert all(-1 <= age <= passed + 1 for age in symptoms["own"]), (passed, symptoms["own"])
    # As in a container that has SYSLOG: no /dev/kmsg, and of root's capabilities two.
    rights = ("setpriv", "--bounding-set=-all,+net_admin,+syslog", "--inh-caps=-all,+net_admin,+syslog")
    script = (
        "from conntrack_operator.kernel.kernel_log import *; log = read_kernel_log(); assert not log.problem, log;"
        "print(KMSG.exists(), sum(line.namespace == {inode} for line in log.lines))"
    )
    inode = Path(f"/proc/{sleeping.pid}/ns/net").stat().st_ino
    said = namespace.run("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh", *rights,
                         sys.executable, "-c", script.format(inode=inode)).stdout.split()  # fmt: skip
    assert said[0] == "False"
    assert int(said[1]) >= 1


def _symptoms_by_a_process_of(namespace: Namespace) -> dict:
    # The process's own namespace decides which lines are its own, so another process asks. Not by namespace.run, which
    # enters it too: of a namespace that had the same number before, lines younger than this process would be its own.
    script = (
        "import json; from conntrack_operator.cli.doctor import *; s = read_symptoms(Roots(), 0.5);"
        "from conntrack_operator.decide.diagnosis_fullness import own_lines;"
        "d = document_of(diagnose(s), s)['usage'];"
        "d['own'] = [s.now_seconds - line.at_seconds for line in own_lines(s)]; print(json.dumps(d))"
    )
    enter = ("nsenter", f"--net={NAMESPACES / namespace.name}")
    done = subprocess.run([*enter, sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
    return json.loads(done.stdout)


def test_without_rights_it_says_so(netns: Lab) -> None:
    """Without SYSLOG and SYS_ADMIN: the log and the other namespaces are said not to be seen, and the rest is there."""
    if Path("/proc/sys/kernel/dmesg_restrict").read_text().strip() == "0" or not KMSG.exists():
        pytest.skip("anybody may read the kernel log here, or there is none")
    bare = ("setpriv", "--bounding-set=-syslog,-sys_admin", "--inh-caps=-syslog,-sys_admin")
    document = doctor(netns.namespace(), prefix=bare)
    assert document["usage"]["kernelLog"]["problem"].startswith("the kernel log may not be read")
    assert any("CAP_SYSLOG" in sentence for sentence in document["unseen"])
    assert any("network namespaces could not be looked into" in sentence for sentence in document["unseen"])
    assert document["verdict"].startswith("Not full")


def test_not_loaded_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No conntrack at all: exit 1 and one sentence."""
    assert main(["doctor", "--proc-root", str(tmp_path)]) == 1
    assert "modprobe nf_conntrack" in capsys.readouterr().err


def test_ec2_allowance(netns: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A card whose counter grows while we look (its numbers are put in by hand): another table is full, right now."""
    namespace = netns.namespace()
    counts = iter((10, 17))
    monkeypatch.setattr(ethtool, "driver_of", lambda name: "ena" if name == "lo" else "")
    monkeypatch.setattr(ethtool, "statistics_of", lambda _: {ethtool.EXCEEDED: next(counts), ethtool.AVAILABLE: 0})
    with namespace.inside():
        assert main(["doctor", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "EC2's own table was full on lo: 17 packets dropped, 7 just now."
    assert reasons(document)["EC2AllowanceExceeded"] == "critical"


def test_driver_statistics_are_read(netns: Lab) -> None:
    """The ioctl itself, on a real driver: a veth's statistics tell the index of its peer."""
    left, right = netns.namespace(), netns.namespace()
    end, peer = netns.link(left, right)
    with right.inside():
        index = socket.if_nametoindex(peer.interface)
    with left.inside():
        assert ethtool.driver_of(end.interface) == "veth"
        assert ethtool.statistics_of(end.interface)["peer_ifindex"] == index
        assert ethtool.statistics_of("absent") == {}
        assert ethtool.read_allowances() == ()


def test_whose_end_a_port_is(netns: Lab) -> None:
    """On a server all entries of its port are local; on the router in the middle none is; behind DNAT all are NAT's."""
    way = netns.routed()
    way.server.track()
    way.router.track()
    way.router.nft(
        "table ip nat { chain pre { type nat hook prerouting priority dstnat;"
        f" tcp dport 81 dnat to {way.server_end.ipv4}:8080; }}; }}"
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(way.server.listen(way.server_end.ipv4, 8080))
        stack.enter_context(way.server.listen(way.server_end.ipv6, 8080))
        for address in (way.server_end.ipv4, way.server_end.ipv6):
            stack.enter_context(way.client.connect(address, 8080))
        stack.enter_context(way.client.connect(way.router_near.ipv4, 81))
        seen = {}
        for name in ("server", "router"):
            with getattr(way, name).inside():
                seen[name] = read_traits(local_addresses(), {}, 7200).ports
    assert seen["server"]["8080/TCP"] == PortTraits(3, 3, 0)
    assert seen["router"]["8080/TCP"] == PortTraits(2, 0, 0)
    assert seen["router"]["81/TCP"] == PortTraits(1, 0, 1)


def test_kube_proxy_is_found_by_its_process(netns: Lab, tmp_path: Path) -> None:
    """A running process of that name with a config file in its own file system: its key is named, and there only."""
    config = tmp_path / "config.conf"
    config.write_text("conntrack:\n  maxPerCore: 0\n  tcpCloseWaitTimeout: 30m\n  tcpEstablishedTimeout: 0s\n")
    here, elsewhere = netns.namespace(), netns.namespace()
    with here.inside():
        process = subprocess.Popen(
            ["kube-proxy", "-c", "import time; print(flush=True); time.sleep(3600)", f"--config={config}"],
            executable=sys.executable,
            stdout=subprocess.PIPE,
        )
    try:
        process.stdout.readline()
        document, other = doctor(here), doctor(elsewhere)
    finally:
        process.kill()
        process.communicate()
    details = [finding["detail"] for finding in document["findings"]]
    assert f"kube-proxy (pid {process.pid}, config {config}) (conntrack.tcpCloseWaitTimeout): 1800." in details
    assert "kube-proxy (pid" not in str(other["findings"])


def _bpf(command: int, attributes: bytes) -> int:
    room = ctypes.create_string_buffer(attributes, 128)
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(pinned_maps._NUMBERS[platform.machine()], command, ctypes.byref(room), 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@pytest.fixture
def bpf_files(tmp_path: Path) -> Iterator[Path]:
    """Give a BPF file system of our own, where Cilium has its maps below /sys."""
    where = tmp_path / "fs/bpf"
    where.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "bpf", "none", str(where)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no BPF file system: {done.stderr.strip()}")
    try:
        (where / "tc/globals").mkdir(parents=True)
        yield tmp_path
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.mark.parametrize("entries", [0, 1, 950])
def test_a_cilium_map_is_counted(bpf_files: Path, entries: int) -> None:
    """A real map of Cilium's kind, pinned where Cilium pins it: its size and its entries."""
    pin = ctypes.create_string_buffer(os.fsencode(bpf_files / "fs/bpf/tc/globals/cilium_ct4_global"))
    made = _bpf(0, struct.pack("=5I", 1, 14, 56, 1000, 0))  # BPF_MAP_CREATE, BPF_MAP_TYPE_HASH
    try:
        key, value = ctypes.create_string_buffer(14), ctypes.create_string_buffer(56)
        for number in range(entries):
            struct.pack_into("=I", key, 0, number)
            _bpf(2, struct.pack("=IIQQQ", made, 0, ctypes.addressof(key), ctypes.addressof(value), 0))  # UPDATE_ELEM
        _bpf(6, struct.pack("=QI", ctypes.addressof(pin), made))  # BPF_OBJ_PIN
    finally:
        os.close(made)
    assert pinned_maps.read_cilium_maps(Roots(sys=bpf_files)) == (PinnedMap("cilium_ct4_global", 1000, entries),)
