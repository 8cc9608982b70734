"""The watches as a whole: whatever ends them, they begin anew."""

import asyncio
import threading
from typing import Any

import kopf
import pytest
from tests.lab.programs import wait_until

from conntrack_operator.controller import watch
from conntrack_operator.controller.figures import Figures
from conntrack_operator.controller.store import Store
from conntrack_operator.controller.workqueue import WorkQueue


async def ends_by_itself(*, stop_flag: threading.Event, **_: Any) -> None:
    """Do as kopf does: have a thread of the loop wait for the word to stop, and end before it comes."""
    asyncio.get_running_loop().run_in_executor(None, stop_flag.wait)
    await asyncio.sleep(0.01)
    raise kopf.LoginError("the token was refused")


def test_watches_that_end_by_themselves_begin_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And say why. kopf's waiting thread must not keep them from it: seen in a pod, whose watches never came back."""
    monkeypatch.setattr(watch, "RESTART_SECONDS", 0.05)
    monkeypatch.setattr(kopf, "operator", ends_by_itself)
    figures = Figures()
    watches = watch.Watches(Store("conntrack-system"), WorkQueue(), None, figures)
    thread = threading.Thread(target=watches.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: figures.watch_restarts.values().get((), 0) >= 2, 20, "they begin anew, twice")
    finally:
        watches.end()
        thread.join(20)
    assert not thread.is_alive()
    assert "the watches ended: LoginError: the token was refused; again" in caplog.text
