"""A real node: kubelet, containerd with runc, CNI's bridge, and kube-proxy, on this machine.

Its programs run in a room of their own (tests/lab/node_rooms.py) and in the network of whoever starts it. The kubelet's
rights are a node's, its own API asks the API server who may.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.lab import containerd, kube
from tests.lab.node_rooms import ADDRESS, BRIDGE, CONTAINERD, Room, make_folder, remove_folder
from tests.lab.programs import Program, free_port

PAUSE = kube.Source(
    "pause", Path(__file__).parents[1] / "node" / "pause",
    ("build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w"), (".",), "a pause container",
)  # fmt: skip
PAUSE_IMAGE = "localhost/pause:lab"
PLUGINS = Path("/usr/lib/cni")
PODS = "10.77.1.0/24"

Proxy = Literal["nftables", "iptables"]


def missing() -> str:
    """Return what this machine lacks to be a node, or an empty string."""
    if os.geteuid() != 0:
        return f"a kubelet needs root, this is uid {os.geteuid()}"
    absent = [program for program in ("runc", "nsenter", "unshare", "nft", "iptables") if shutil.which(program) is None]
    if not PLUGINS.is_dir():
        absent.append(f"the CNI plugins in {PLUGINS}")
    return f"not installed: {', '.join(absent)}" if absent else ""


class Node:
    """A cluster's node that is this machine: started, stopped, and looked into.

    `kubeconfig` presents the token of a node called `name`, `proxy_kubeconfig` kube-proxy's; `authority` is the
    certificate authority that the API server's own client certificate for the kubelet is signed by.
    """

    def __init__(
        self, name: str, kubeconfig: Path, proxy_kubeconfig: Path, authority: Path, folder: Path, say: kube.Say,
        proxy: Sequence[str],
    ) -> None:  # fmt: skip
        self.name, self.folder, self.address = name, folder, ADDRESS
        self._programs_folder = containerd.programs(say)
        self._pause = kube.binary(say, PAUSE)
        self._run = make_folder()  # not in `folder`: a socket's path holds 107 bytes
        self.room = Room(folder / "room")
        self._health_port = free_port()
        self._authority, self._kubeconfig = authority, kubeconfig
        self.containerd = Program("containerd", [], folder / "containerd.log")
        self.kubelet = Program("kubelet", [], folder / "kubelet.log")
        self.proxy = Program("kube-proxy", [], folder / "kube-proxy.log")
        self._kubelet_command = [
            *kube.command("kubelet", say), f"--config={folder / 'kubelet.json'}", f"--kubeconfig={kubeconfig}",
            f"--hostname-override={name}", f"--node-ip={ADDRESS}", f"--root-dir={folder / 'kubelet'}",
        ]  # fmt: skip
        self._proxy_command = [
            *kube.command("kube-proxy", say), f"--kubeconfig={proxy_kubeconfig}", f"--hostname-override={name}",
            *proxy, f"--cluster-cidr={PODS}", f"--metrics-bind-address=127.0.0.1:{free_port()}",
            f"--healthz-bind-address=127.0.0.1:{free_port()}",
        ]  # fmt: skip

    def __enter__(self) -> Self:
        """Start it, without waiting until it is Ready."""
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End everything on it."""
        for program in self.programs:
            program.stop(seconds=0)
        self.room.stop()
        remove_folder(self._run)

    @property
    def programs(self) -> tuple[Program, ...]:
        """The processes, in the order they are ended."""
        return (self.proxy, self.kubelet, self.containerd)

    def _start(self) -> None:
        self.room.start()
        self._write_configuration()
        self.containerd.command = self.room.command(
            ["env", f"PATH={self._programs_folder}:/usr/sbin:/usr/bin:/sbin:/bin", "containerd",
             f"--config={self.folder / 'containerd.toml'}"]
        )  # fmt: skip
        self.containerd.start()
        self.containerd.wait_until(lambda: self.ctr("version", check=False).returncode == 0, 60, "containerd answers")
        archive = self.folder / "pause.tar"
        _write_image(archive, self._pause)
        self.add_image(archive)
        self.kubelet.command = self.room.command(self._kubelet_command)
        self.kubelet.start()
        self.proxy.command = self.room.command(self._proxy_command)
        self.proxy.start()

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run containerd's command line on the kubelet's images and containers."""
        place = (f"--address={self._run / 'containerd.sock'}", f"--namespace={CONTAINERD}")
        return self.room.run(str(self._programs_folder / "ctr"), *place, *arguments, check=check)

    def add_image(self, archive: Path) -> None:
        """Import an image, as `kind load image-archive` does."""
        self.ctr("images", "import", "--snapshotter=overlayfs", str(archive))

    def _write_configuration(self) -> None:
        (self.folder / "kubelet.json").write_text(json.dumps(self._kubelet_configuration()))
        (self.folder / "containerd.toml").write_text(self._containerd_configuration())
        network = self.folder / "cni"
        network.mkdir()
        (network / "10-lab.conflist").write_text(json.dumps(self._network()))

    def _kubelet_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": ADDRESS, "readOnlyPort": 0,
            "healthzBindAddress": "127.0.0.1", "healthzPort": self._health_port,
            "authentication": {
                "anonymous": {"enabled": False}, "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._authority)},
            },
            "authorization": {"mode": "Webhook"},
            # As this machine has them: cgroups of version 1 or 2, mounted by nobody's systemd.
            "failCgroupV1": False, "cgroupDriver": "cgroupfs", "cgroupsPerQOS": False, "enforceNodeAllocatable": [],
            "failSwapOn": False, "containerRuntimeEndpoint": f"unix://{self._run / 'containerd.sock'}",
            # A full disk of the machine that tests is not what is tested.
            "evictionHard": dict.fromkeys(("memory.available", "nodefs.available", "imagefs.available"), "0%"),
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "2s", "syncFrequency": "10s",
        }  # fmt: skip

    def _containerd_configuration(self) -> str:
        return f"""\
version = 3
root = "{self.folder / "containerd"}"
state = "{self._run / "containerd"}"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = "{self._run / "containerd.sock"}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{PLUGINS}"]
conf_dir = "{self.folder / "cni"}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{shutil.which("runc")}"
Root = "{self._run / "runc"}"
SystemdCgroup = false
"""

    def _network(self) -> dict[str, Any]:
        addresses = {"type": "host-local", "dataDir": str(self.folder / "addresses"), "ranges": [[{"subnet": PODS}]]}
        addresses["routes"] = [{"dst": "0.0.0.0/0"}]
        bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "ipam": addresses}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "1.0.0", "name": "lab", "plugins": [bridge, portmap]}


def _write_image(path: Path, program: Path) -> None:
    """Write an image that holds one program, as `docker save` writes it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        entry = tarfile.TarInfo("pause")
        entry.mode, entry.size = 0o755, program.stat().st_size
        with program.open("rb") as content:
            files.addfile(entry, content)
    content = layer.getvalue()
    configuration = {
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
    }  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for name, data in (
            ("layer.tar", content), ("config.json", json.dumps(configuration).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
