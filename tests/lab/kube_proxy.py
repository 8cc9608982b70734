"""The real kube-proxy in a network namespace, against the test control plane.

The API server listens on the host's loopback alone, and a namespace has a loopback of its own: a relay listens there on
the same port, so that the same kubeconfig serves on both sides. Nothing outside the namespace is touched, unless the
flags given make kube-proxy size the table, which is the machine's.
"""

import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.lab import kube
from tests.lab.cluster import Cluster
from tests.lab.namespaces import Namespace
from tests.lab.programs import Program

LEAVE_THE_TABLE = ("--conntrack-max-per-core=0", "--conntrack-min=0")
"""Flags with which kube-proxy sizes nothing: sizes are read-only in a namespace, and a refused write ends it."""
IPTABLES = ("iptables", "iptables-save", "iptables-restore")


class Relay:
    """Lets programs in a namespace reach 127.0.0.1:port of the host, by the same address or by `at`."""

    def __init__(self, namespace: Namespace, port: int, at: tuple[str, int] | None = None) -> None:
        self._port = port
        self._listener = namespace.listen(*(at or ("127.0.0.1", port)))
        self._listener.settimeout(None)
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(("127.0.0.1", self._port), timeout=5)
            except OSError:
                near.close()  # the API server is away
                continue
            far.settimeout(None)
            self._open.update((near, far))
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._copy, args=(source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut every connection, and wait until nothing runs any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in self._open:
            end.close()


class KubeProxy:
    """kube-proxy of the Node `node`, which must exist. `restart(flags)` changes them; leaving the block ends it."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: Namespace,
        node: str,
        mode: Literal["nftables", "iptables"] = "nftables",
        flags: Sequence[str] = LEAVE_THE_TABLE,
        variant: Literal["nft", "legacy"] = "nft",
    ) -> None:
        self.namespace = namespace
        self._relay: Relay | None = None
        self._port = cluster.port
        self._command = [
            *kube.command("kube-proxy", print),
            f"--kubeconfig={cluster.kubeconfig}",
            f"--hostname-override={node}",
            f"--proxy-mode={mode}",
            "--healthz-bind-address=127.0.0.1:10256",
            "--nodeport-addresses=primary",
        ]
        path = f"{_iptables(cluster.folder, variant)}:/usr/sbin:/usr/bin:/sbin:/bin"
        log = cluster.folder / f"kube-proxy-{node}.log"
        # The lock of iptables-legacy is one for the whole machine: a kube-proxy that does not get it in 5 s ends.
        env = {"PATH": path, "HOME": str(cluster.folder), "XTABLES_LOCKFILE": str(cluster.folder / "xtables.lock")}
        self.program = Program("kube-proxy", [*self._command, *flags], log, env)

    def __enter__(self) -> Self:
        """Start it and wait until it has written its rules once."""
        # A relay in the host's own namespace would meet the API server on its port.
        self._relay = Relay(self.namespace, self._port) if self.namespace.name else None
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it. Its rules stay, as they do when a real one ends."""
        self.stop()

    def start(self) -> None:
        """Start it and wait until it is healthy: its rules were written."""
        with self.namespace.inside():
            self.program.start()
        self.program.wait_until(self._healthy, 60, "kube-proxy wrote its rules")

    def restart(self, flags: Sequence[str]) -> None:
        """End it and start it with other flags in place of those it had."""
        self.program.stop()
        self.program.command = [*self._command, *flags]
        self.start()

    def stop(self) -> None:
        """End it and the relay."""
        self.program.stop()
        if self._relay:
            self._relay.close()

    def _healthy(self) -> bool:
        """Tell whether it has written its rules.

        While it starts it calls itself healthy too, but names no family of addresses yet (pkg/proxy/healthcheck).
        """
        try:
            with self.namespace.connect("127.0.0.1", 10256) as client:
                client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                said = b"".join(iter(lambda: client.recv(4096), b""))
        except OSError:
            return False
        return b" 200 " in said and b'"IPv4":' in said


def add_proxied_node(cluster: Cluster, name: str, address: str) -> None:
    """Make a Node with an address, which kube-proxy takes for that of its machine."""
    cluster.add_node(name)
    set_address(cluster, name, address)


def set_address(cluster: Cluster, name: str, address: str) -> None:
    """Say that a Node has this address."""
    addresses: dict[str, Any] = {"status": {"addresses": [{"type": "InternalIP", "address": address}]}}
    cluster.kubectl("patch", "node", name, "--subresource=status", "--type=strategic", "-p", json.dumps(addresses))


def add_service(
    cluster: Cluster,
    name: str,
    port: int,
    backend: tuple[str, int],
    *,
    node_port: int | None = None,
    protocol: str = "TCP",
    spec: dict[str, Any] | None = None,
) -> str:
    """Make a Service (NodePort when one is given) whose only endpoint is `backend`; return its ClusterIP."""
    address, target = backend
    ports: dict[str, Any] = {"name": "main", "port": port, "targetPort": target, "protocol": protocol}
    if node_port:
        ports["nodePort"] = node_port
    kind = "NodePort" if node_port else "ClusterIP"
    cluster.kubectl(
        "create", "-f", "-",
        input={
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": kind, "ports": [ports], **(spec or {})},
        },
    )  # fmt: skip
    cluster.kubectl(
        "create", "-f", "-",
        input={
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "main", "port": target, "protocol": protocol}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    )  # fmt: skip
    service = cluster.get("service", name)
    assert service
    return str(service["spec"]["clusterIP"])


def remove_service(cluster: Cluster, name: str) -> None:
    """Delete what `add_service` made."""
    cluster.kubectl("delete", "service,endpointslice", name, "--ignore-not-found", "--wait=true")


def _iptables(folder: Path, variant: str) -> Path:
    """Return a folder in which iptables is the one of this variant, whatever the machine's own is."""
    place = folder / f"iptables-{variant}"
    if not place.exists():
        place.mkdir()
        for name in (each for stem in IPTABLES for each in (stem, stem.replace("ip", "ip6", 1))):
            family, _, rest = name.partition("-")
            program = shutil.which("-".join(part for part in (family, variant, rest) if part))
            if program:
                (place / name).symlink_to(program)
    return place
