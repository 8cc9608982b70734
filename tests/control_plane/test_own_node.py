"""The agent's thin client against a real API server: read, watch, patch, and a server that goes and comes back."""

import threading

import pytest
from tests.lab.cluster import Cluster
from tests.lab.programs import wait_until

from conntrack_operator.cluster.access import access_for
from conntrack_operator.cluster.own_node import OwnNode
from conntrack_operator.errors import Retry

SPEC = {"revision": "r1", "mode": "Apply", "nodeUID": "n", "policies": [], "settings": {}}


def written(cluster, name, **spec):
    """Write a NodeConntrack as the controller would."""
    cluster.kubectl(
        "apply",
        "-f",
        "-",
        input={
            "apiVersion": "conntrack-operator.io/v1alpha1",
            "kind": "NodeConntrack",
            "metadata": {"name": name},
            "spec": {**SPEC, **spec},
        },
    )


def answered(own):
    """Return the name the server answers with, or None while it refuses."""
    try:
        return own.read()[0]["metadata"]["name"]
    except Retry:
        return None


@pytest.fixture
def own(cluster: Cluster, crds):  # noqa: ARG001 - the CRDs must be there
    """Return the client of node own-1; the cluster is cleared afterwards."""
    yield OwnNode(access_for(str(cluster.kubeconfig)), "own-1")
    cluster.clear()


def test_read_watch_patch(cluster, own):
    """Absent is a value; changes arrive in order; a status is replaced as a whole; a deletion is seen."""
    assert own.read()[0] is None
    written(cluster, "own-1")
    written(cluster, "other")
    found, version = own.read()
    assert found["spec"]["revision"] == "r1"
    seen, arrived = [], threading.Event()

    def watch():
        for changed in own.changes_since(version):
            seen.append(changed and (changed["spec"]["revision"], changed.get("status", {}).get("phase")))
            if changed is None:
                break
        arrived.set()

    threading.Thread(target=watch, daemon=True).start()
    written(cluster, "other", revision="r9")
    written(cluster, "own-1", revision="r2")
    writer = OwnNode(access_for(str(cluster.kubeconfig)), "own-1")
    writer.write_status({"phase": "Current", "observedRevision": "r2", "history": []})
    writer.write_status({"phase": "Refused"})
    status = cluster.get("nodeconntrack", "own-1")["status"]
    assert (status["phase"], "observedRevision" in status) == ("Refused", False)
    cluster.kubectl("delete", "nodeconntrack", "own-1")
    assert arrived.wait(60)
    assert seen == [("r2", None), ("r2", "Current"), ("r2", "Refused"), None]
    writer.write_status({"phase": "Current"})


def test_refusals_are_sentences(cluster, own):
    """A status the API server does not accept, and a token without rights, name what was refused."""
    written(cluster, "own-1")
    with pytest.raises(Retry, match="Unsupported value"):
        own.write_status({"phase": "Sideways"})
    token = cluster.token("default", namespace="default")
    stranger = OwnNode(access_for(str(cluster.kubeconfig_for(token))), "own-1")
    with pytest.raises(Retry, match=r"403.*forbidden"):
        stranger.read()


def test_server_away_and_back(cluster, own):
    """A server that is away is Retry, at once; the same client works again when it is back."""
    written(cluster, "own-1")
    _, version = own.read()
    watch = own.changes_since(version)
    cluster.stop_apiserver()
    try:
        with pytest.raises(Retry):
            next(watch)
        with pytest.raises(Retry, match="does not answer"):
            own.read()
    finally:
        cluster.start_apiserver()
    # Just started it may still say 429; the agent's watch asks again, and so does this test.
    wait_until(lambda: answered(own) == "own-1", 60, "the client works again")
