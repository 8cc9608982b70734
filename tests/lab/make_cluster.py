"""`make cluster`: a Kubernetes on this machine with the operator on it, to look around in; Ctrl-C ends it.

The same cluster that the tests of tests/node use: a control plane, one real node, the image built from the Dockerfile,
the chart installed by helm. This machine's table is tuned by what is applied there, and put back at the end.
"""

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.lab import helm, host, image, kube, real

from conntrack_operator import __version__

GUIDE = """
A cluster with conntrack-operator {version} runs on this machine (ready after {seconds:.0f} s). In another terminal:

  export KUBECONFIG={folder}/admin.kubeconfig PATH={folder}/bin:$PATH

  kubectl get pods -n conntrack-system                    the controller; agents come with the first policy
  kubectl apply -f manifests/examples/observe.yaml        what would change; changes nothing
  kubectl apply -f manifests/examples/web.yaml            tune this machine: tried, kept, taken back when you delete it
  kubectl get conntrackpolicies,nodeconntracks            how full the table is
  kubectl conntrack doctor {node}                         why it is as it is
  helm uninstall conntrack-operator -n conntrack-system   the way out

Logs of its programs: {folder}/*.log
Ctrl-C ends it and gives this machine its own settings back.
"""


def say(line: str) -> None:
    """Tell how it goes on."""
    print(line, file=sys.stderr, flush=True)


def install(cluster: real.Real, folder: Path) -> None:
    """Put the image on the node, install the chart, and lay the programs for looking around in `folder`/bin."""
    cluster.node.add_image(image.archive(say))
    programs = folder / "bin"
    programs.mkdir()
    (programs / "helm").symlink_to(helm.program())
    for name in ("kubectl", "kubectl-conntrack", "conntrack-operator"):
        (programs / name).symlink_to(Path(sys.executable).with_name(name))
    run = helm.Helm(helm.program(), folder, cluster)
    run(
        "install", "conntrack-operator", str(helm.CHART), "--namespace=conntrack-system", "--create-namespace", "--wait"
    )


def main() -> int:
    """Start it, tell what to do there, wait for Ctrl-C, end it."""
    if reason := real.missing() or image.missing() or host.missing():
        say(f"make cluster: {reason}")
        return 1
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="conntrack-operator-cluster-"))
    kube.binary(say)
    try:
        with host.Host(), real.running(folder, say) as cluster:
            say("the node is Ready; installing the operator")
            install(cluster, folder)
            seconds = time.monotonic() - began
            say(GUIDE.format(version=__version__, seconds=seconds, folder=folder, node=real.NODE))
            signal.pause()
    except KeyboardInterrupt:
        say("ended; this machine has its own settings back")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
