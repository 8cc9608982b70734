"""Sources: every change is delivered, and no failure of the outside delivers anything."""

import logging
import threading

import pytest
from tests.lab.host import write_whole
from tests.lab.programs import wait_until

from conntrack_operator.agent.mailbox import Mailbox
from conntrack_operator.agent.sources import delivery_from, watch_file, watch_object
from conntrack_operator.errors import Invalid, Problem, Retry
from conntrack_operator.model.node import NodeSpec

OBJECT = {
    "apiVersion": "conntrack-operator.io/v1alpha1",
    "kind": "NodeConntrack",
    "metadata": {"name": "node-1", "uid": "u", "managedFields": [{}], "resourceVersion": "7"},
    "spec": {"revision": "r", "mode": "Apply", "nodeUID": "n", "policies": [], "settings": {}},
    "status": {"phase": "Current", "observedRevision": "r"},
}


def test_delivery():
    """Spec, status and uid of the object; a status another version wrote is only unknown."""
    delivery = delivery_from(OBJECT)
    assert (delivery.uid, delivery.spec.revision, delivery.status.phase) == ("u", "r", "Current")
    assert delivery_from({**OBJECT, "status": {"phase": "Sideways"}}).status is None
    assert delivery_from(None).spec is None


def test_newer_object():
    """A spec this version does not understand is not half obeyed."""
    newer = {**OBJECT, "spec": {**OBJECT["spec"], "settings": {"quantum": True}}}
    with pytest.raises(Retry, match=r"not understood.*quantum"):
        delivery_from(newer)


class Server:
    """An API server's answers, one after the other; an exception is raised, a list is a watch. Then it ends."""

    def __init__(self, pause, *answers):
        self.pause = pause
        self.answers = list(answers)

    def _next(self):
        if not self.answers:
            self.pause.set()
            raise Retry("the story is over")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def read(self):
        """Answer a list."""
        return self._next(), "7"

    def changes_since(self, version):
        """Answer a watch."""
        assert version == "7"
        yield from self._next()


def test_watch_survives_everything(caplog):
    """An API server that is away, a broken watch and a strange object deliver nothing and stop nothing."""
    pause, mailbox, seen = threading.Event(), Mailbox(), []
    mailbox.put = lambda delivery: seen.append(delivery.uid)
    changed = {**OBJECT, "metadata": {"name": "node-1", "uid": "changed"}}
    server = Server(pause, Retry("away"), OBJECT, [changed, None], OBJECT, Retry("cut"), {"spec": {}}, OBJECT, [])
    with caplog.at_level(logging.WARNING):
        watch_object(server, mailbox, pause)
    assert seen == ["u", "changed", "", "u", "u"]
    assert "away; the node keeps what it has" in caplog.text


def test_watch_file(tmp_path, monkeypatch, caplog):
    """A file is delivered when it changes; a wrong or missing one changes nothing and is named once."""
    monkeypatch.setattr("conntrack_operator.agent.sources.FILE_POLL_SECONDS", 0.01)
    path, pause, mailbox = tmp_path / "policy.yaml", threading.Event(), Mailbox()
    path.write_text("first")
    read_count = []

    def read(file):
        if not file.exists():
            raise Invalid(Problem("", "the file is gone"))
        text = file.read_text()
        read_count.append(text)
        if text == "wrong":
            raise Invalid(Problem("spec.mode", "Required value"))
        return NodeSpec(revision=text, mode="Apply", node_uid="")

    thread = threading.Thread(target=watch_file, args=(path, read, mailbox, pause))
    thread.start()
    try:
        assert mailbox.take(60).spec.revision == "first"
        with caplog.at_level(logging.WARNING):
            write_whole(path, "wrong")
            wait_until(lambda: "wrong" in read_count, 30, "the wrong file is read")
            path.unlink()
            wait_until(lambda: "the file is gone" in caplog.text, 30, "the missing file is named")
            assert mailbox.take(0.1) is None
        write_whole(path, "second, longer")
        assert mailbox.take(60).spec.revision == "second, longer"
    finally:
        pause.set()
        thread.join(5)
    assert caplog.text.count("spec.mode: Required value") == 1
    assert caplog.text.count("the file is gone") == 1
    assert read_count.count("first") == 1
