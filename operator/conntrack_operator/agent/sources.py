"""Where wishes come from: the node's own object in the API server, or a policy file.

Each runs in a thread of its own and puts what it finds into the mailbox; it never acts.
"""

import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from conntrack_operator.errors import ConntrackOperatorError, Retry
from conntrack_operator.model.node import NodeConntrack, NodeSpec, NodeStatus

from .mailbox import Delivery, Mailbox

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
FILE_POLL_SECONDS = 1.0


class Own(Protocol):
    """The node's object in the API server, as `cluster.own_node` gives it; an agent on a file loads no HTTP client."""

    def read(self) -> tuple[dict[str, Any] | None, str]:
        """Return the object and the version to watch from."""

    def changes_since(self, resource_version: str) -> Iterator[dict[str, Any] | None]:
        """Yield the object at each change."""


def watch_object(own: Own, mailbox: Mailbox, pause: threading.Event) -> None:
    """Deliver the object of this node, now and at every change, until `pause` is set.

    An API server that is away is asked again, with pauses that grow to 5 s; meanwhile nothing is delivered, and nothing
    on the node changes.
    """
    failures = 0
    while not pause.is_set():
        try:
            document, version = own.read()
            mailbox.put(delivery_from(document))
            failures = 0
            for changed in own.changes_since(version):
                mailbox.put(delivery_from(changed))
        except ConntrackOperatorError as error:
            if failures == 0:
                log.warning("%s; the node keeps what it has", error)
            failures += 1
            # Spread over half the pause, so that a fleet does not return in step.
            seconds = min(FIRST_PAUSE_SECONDS * 2 ** min(failures, 10), LONGEST_PAUSE_SECONDS)
            pause.wait(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreading, not secrecy


def delivery_from(document: dict[str, Any] | None) -> Delivery:
    """Return what an object of the API server says. Raises Retry when it is not one this version understands."""
    if document is None:
        return Delivery(None)
    try:
        node = NodeConntrack.model_validate({key: value for key, value in document.items() if key != "status"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Retry(
            f"this node's NodeConntrack is not understood ({where}: {first['msg']}); is the controller newer?"
        ) from error
    return Delivery(node.spec, _status_in(document), node.metadata.uid or "")


def _status_in(document: dict[str, Any]) -> NodeStatus | None:
    # A status another version wrote is no reason to stop: it is only what we said before.
    try:
        return NodeStatus.model_validate(document["status"])
    except (KeyError, ValidationError):
        return None


def watch_file(path: Path, read: Callable[[Path], NodeSpec], mailbox: Mailbox, pause: threading.Event) -> None:
    """Deliver the policy in `path`, now and whenever the file changes, until `pause` is set.

    A file that is wrong or missing changes nothing: the sentence is logged once, and the node keeps what it has.
    """
    seen: object = None
    while not pause.is_set():
        now: object
        try:
            stat = path.stat()
            now = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError as error:
            now = error.strerror
        if now != seen:
            seen = now
            try:
                mailbox.put(Delivery(read(path)))
            except ConntrackOperatorError as error:
                log.warning("%s; the node keeps what it has", error)
        pause.wait(FILE_POLL_SECONDS)
