"""A real control plane for one test run: etcd, kube-apiserver and kube-controller-manager as processes on loopback.

Owns their flags, ports, folders, credentials and ends. Nothing is faked: RBAC is on, ServiceAccount tokens are
signed, owner references are collected and DaemonSets get their pods, which stay Pending, since no kubelet runs here.
"""

import json
import secrets
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.lab import kube
from tests.lab.kubectl import Kubectl
from tests.lab.programs import Program, free_port

CONTROLLERS = (
    "garbage-collector-controller,namespace-controller,daemonset-controller,serviceaccount-controller,"
    "clusterrole-aggregation-controller,root-ca-certificate-publisher-controller"
)
# The last thing the API server's bootstrap makes; before it, the controller manager is refused (tried).
LAST_ROLE = (
    "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system"
    "/rolebindings/system::leader-locking-kube-controller-manager"
)


def missing() -> str:
    """Return what this machine lacks to run a control plane, or an empty string."""
    absent = [program for program in ("openssl", "setpriv") if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


class ControlPlane(Kubectl):
    """The processes. `url`, `kubeconfig` (of an administrator), `kubectl(...)`; everything below `folder`."""

    controllers = CONTROLLERS

    def __init__(self, folder: Path, say: kube.Say, address: str = "127.0.0.1") -> None:
        super().__init__(folder, folder / "admin.kubeconfig", address)
        self.port = free_port()
        self.url = f"https://{address}:{self.port}"
        self.authority = folder / "certificates" / "apiserver.crt"
        self._token = secrets.token_hex(16)
        etcd_port, peer_port = free_port(), free_port()
        self._etcd = self.program("etcd", say, etcd_flags(folder / "etcd", etcd_port, peer_port))
        self.apiserver = self.program("kube-apiserver", say, self.apiserver_flags(etcd_port))
        self.controller_manager = self.program(
            "kube-controller-manager", say, {
                "kubeconfig": self.kubeconfig, "leader-elect": "false", "secure-port": 0,
                "controllers": self.controllers,
                "service-account-private-key-file": folder / "accounts.key", "root-ca-file": self.authority,
            },
        )  # fmt: skip

    def program(self, name: str, say: kube.Say, flags: Mapping[str, object]) -> Program:
        """Return one of the programs of Kubernetes, not started."""
        command = [*kube.command(name, say), *(f"--{flag}={value}" for flag, value in flags.items())]
        return Program(name, command, self.folder / f"{name}.log")

    def apiserver_flags(self, etcd_port: int) -> dict[str, object]:
        """Return the flags of the API server."""
        key = self.folder / "accounts.key"
        return {
            "etcd-servers": f"http://127.0.0.1:{etcd_port}",
            "bind-address": self.address,
            "advertise-address": self.address,
            "endpoint-reconciler-type": "none",  # an Endpoints object may not name a loopback address
            "secure-port": self.port,
            "cert-dir": self.authority.parent,  # it signs its own certificate
            "token-auth-file": self.folder / "tokens.csv",
            "authorization-mode": "Node,RBAC",
            "allow-privileged": "true",
            "service-cluster-ip-range": "10.96.0.0/16",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
        }

    @property
    def programs(self) -> tuple[Program, ...]:
        """The processes, in the order they start."""
        return (self._etcd, self.apiserver, self.controller_manager)

    def start(self) -> None:
        """Start everything; return when the API server serves and its bootstrap is through (about 5 s)."""
        make_key(self.folder / "accounts.key")
        (self.folder / "tokens.csv").write_text(self.tokens())
        self._etcd.start()
        self.start_apiserver()
        self.kubeconfig_for(self._token, self.kubeconfig)
        self.apiserver.wait_until(lambda: self._answers(LAST_ROLE), 60, "the API server's bootstrap roles")
        self.controller_manager.start()
        self.apiserver.wait_until(
            lambda: self._answers("/api/v1/namespaces/default/serviceaccounts/default"),
            60,
            "the default ServiceAccount",
        )

    def tokens(self) -> str:
        """Return who may speak to the API server, as `--token-auth-file` takes it."""
        return f'{self._token},admin,admin,"system:masters"\n'

    def stop(self) -> None:
        """End every process, the last one first."""
        for program in reversed(self.programs):
            if program.running:
                program.send(signal.SIGCONT)
            program.stop(seconds=0 if program is self.apiserver else 10)

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is ready.

        A controller manager that was left without one starts anew: its own watches come back up to 30 s later, and
        meanwhile namespaces stay and get no ServiceAccount.
        """
        self.apiserver.start()
        self.apiserver.wait_until(lambda: self._answers("/readyz"), 60, "the API server is ready")
        if self.controller_manager.running:
            self.controller_manager.stop(seconds=0)
            self.controller_manager.start()

    def stop_apiserver(self) -> None:
        """Kill the API server; etcd keeps what it knew. Watches break, connections are refused."""
        self.apiserver.stop(seconds=0)  # in order, it would wait for open watches first

    def restart_apiserver(self) -> None:
        """End and start the API server, on the same port with the same certificate."""
        self.stop_apiserver()
        self.start_apiserver()

    def _answers(self, path: str) -> bool:
        if not self.authority.exists():
            return False
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self._token}"})
        try:
            context = ssl.create_default_context(cafile=str(self.authority))
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
            )
            with opener.open(request, timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kubeconfig_for(
        self, token: str, path: Path | None = None, namespace: str = "default", server: str = ""
    ) -> Path:
        """Write a kubeconfig that presents `token`; return its path.

        With `server`, the API server is asked under that address, which its certificate need not name.
        """
        path = path or self.folder / f"{secrets.token_hex(4)}.kubeconfig"
        place: dict[str, object] = {"server": self.url, "certificate-authority": str(self.authority)}
        if server:
            place = {"server": server, "insecure-skip-tls-verify": True}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": place}],
                    "users": [{"name": "test", "user": {"token": token}}],
                    "contexts": [
                        {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
                    ],
                    "current-context": "test",
                }
            )
        )
        path.chmod(0o600)
        return path


def etcd_flags(folder: Path, port: int, peer_port: int) -> dict[str, object]:
    """Return etcd's flags: one member on loopback, in memory as far as it lets itself."""
    url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return {
        "data-dir": folder,
        "listen-client-urls": url,
        "advertise-client-urls": url,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
        "unsafe-no-fsync": "true",
        "log-level": "warn",
    }


def make_key(path: Path) -> None:
    """Write a new key that signs ServiceAccount tokens."""
    subprocess.run(
        ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
