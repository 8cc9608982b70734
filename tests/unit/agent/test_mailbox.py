"""The mailbox: the newest wish, at once, and an end that is noticed."""

import threading
import time

from conntrack_operator.agent.mailbox import Delivery, Mailbox


def test_newest_wins():
    """A wish that was not taken yet gives way to a newer one."""
    mailbox = Mailbox()
    mailbox.put(Delivery(None, uid="old"))
    mailbox.put(Delivery(None, uid="new"))
    taken = mailbox.take(0)
    assert taken is not None
    assert taken.uid == "new"
    assert mailbox.take(0) is None


def test_waiting_ends_with_a_delivery():
    """The loop wakes when something comes, not when its time is up."""
    mailbox = Mailbox()
    threading.Timer(0.05, mailbox.put, [Delivery(None)]).start()
    begun = time.monotonic()
    assert mailbox.take(300) is not None
    assert time.monotonic() - begun < 100


def test_stop_wakes_and_stays():
    """After a stop nobody waits any more."""
    mailbox = Mailbox()
    mailbox.stop_soon()
    assert mailbox.take(30) is None
    assert mailbox.stopped
    assert mailbox.take(30) is None
