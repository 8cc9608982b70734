"""A whole Kubernetes on this machine: the control plane of tests/lab/cluster.py with its scheduler, and a real node."""

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.lab import control_plane, kube, node
from tests.lab.cluster import Cluster
from tests.lab.host import SYSCTLS, Writes
from tests.lab.kube_proxy import LEAVE_THE_TABLE
from tests.lab.kubectl import Kubectl
from tests.lab.node_rooms import ADDRESS, MachinesNetwork, own_network
from tests.lab.programs import Program, wait_until

NODE = "node-1"


def missing() -> str:
    """Return what this machine lacks, or an empty string."""
    return control_plane.missing() or node.missing()


class NodesCluster(Cluster):
    """A control plane that a kubelet on this machine joins and pods reach: all controllers, and a scheduler."""

    controllers = "*"

    def __init__(self, folder: Path, say: kube.Say) -> None:
        super().__init__(folder, say, ADDRESS)
        self.node_token, self.proxy_token = secrets.token_hex(16), secrets.token_hex(16)
        self.scheduler = self.program(
            "kube-scheduler", say, {"kubeconfig": self.kubeconfig, "leader-elect": "false", "secure-port": 0}
        )

    @property
    def programs(self) -> tuple[Program, ...]:
        """The processes, in the order they start."""
        return (*super().programs, self.scheduler)

    @property
    def kubelets_authority(self) -> Path:
        """The certificate authority of the certificate by which the API server shows itself to kubelets."""
        return self.folder / "kubelet-client.crt"

    def tokens(self) -> str:
        """Return who may speak to the API server: an administrator, the kubelet as a node, kube-proxy."""
        return (
            super().tokens() + f'{self.node_token},system:node:{NODE},node,"system:nodes"\n'
            f"{self.proxy_token},system:kube-proxy,proxy\n"
        )

    def apiserver_flags(self, etcd_port: int) -> dict[str, object]:
        """Return the flags of the API server."""
        flags = super().apiserver_flags(etcd_port)
        del flags["endpoint-reconciler-type"]
        return flags | {
            "enable-admission-plugins": "NodeRestriction",
            "kubelet-preferred-address-types": "InternalIP",
            "kubelet-client-certificate": self.kubelets_authority,
            "kubelet-client-key": self.folder / "kubelet-client.key",
        }

    def start(self) -> None:
        """Start everything."""
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "7", "-subj", "/O=system:masters/CN=kube-apiserver",
             "-keyout", str(self.folder / "kubelet-client.key"), "-out", str(self.kubelets_authority)],
            check=True, capture_output=True,
        )  # fmt: skip
        super().start()
        self.scheduler.start()


class Real(NodesCluster):
    """The control plane and its one node; a `tests.lab.place.Place`."""

    node: node.Node
    node_name, node_address = NODE, ADDRESS
    can_size = True
    get, items = Kubectl.get, Kubectl.items  # they take all that kubectl takes

    def add_image(self, archive: Path) -> None:
        """Put an image on the node."""
        self.node.add_image(archive)

    def name_image(self, name: str, another: str) -> None:
        """Give an image that is on the node another name besides."""
        self.node.ctr("images", "tag", *(f"docker.io/library/{each}" for each in (name, another)))

    def on_node(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the node as root."""
        return self.node.room.run(*command, check=check)

    def writes(self) -> Writes:
        """Return what counts writes to the kernel, also through the node's own view of /proc."""
        return Writes(self.node.room.path(SYSCTLS))

    def is_ready(self) -> bool:
        """Return whether the node reports itself ready."""
        conditions = (self.get("node", NODE) or {}).get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@contextlib.contextmanager
def running(folder: Path, say: kube.Say, proxy: node.Proxy = "nftables", *, sizes: bool = True) -> Iterator[Real]:
    """Give a cluster whose node is Ready.

    Where nobody needs `sizes`, which can be written there alone, it is not in this machine's network but in one of its
    own, and so is the calling thread meanwhile. Else whoever asks holds the machine's lock (tests/lab/host.py).
    """
    with MachinesNetwork() if sizes else own_network():
        real = Real(folder, say)
        try:
            real.start()
            kubeconfigs = [real.kubeconfig_for(token) for token in (real.node_token, real.proxy_token)]
            real.can_size = sizes
            mode = [f"--proxy-mode={proxy}", *(() if sizes else LEAVE_THE_TABLE)]
            with node.Node(NODE, *kubeconfigs, real.kubelets_authority, folder, say, mode) as real.node:
                wait_until(real.is_ready, 120, "the node is Ready")
                yield real
        finally:
            real.stop()
