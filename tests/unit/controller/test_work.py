"""The beginning of a leader's work: nothing may keep it from beginning."""

import threading
from types import SimpleNamespace

import pytest

from conntrack_operator.controller.store import Store
from conntrack_operator.controller.touched import Key
from conntrack_operator.controller.work import Work
from conntrack_operator.controller.workqueue import WorkQueue
from conntrack_operator.errors import Retry


class Stumbling:
    """A reconciler whose first looks at everything fail."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.lookout = SimpleNamespace(distrust=lambda: None, begin_watches_anew=None)
        self.looked = threading.Event()

    def read_everything(self) -> None:
        """Fail as often as was said."""
        if self.errors:
            raise self.errors.pop(0)

    def put_right(self, key: Key) -> None:
        """Note the first piece of work."""
        if key == Key("look"):
            self.looked.set()


@pytest.mark.parametrize("error", [Retry("the API server does not answer"), KeyError("a bug")], ids=["away", "bug"])
def test_it_begins_when_everything_could_be_read(error: Exception) -> None:
    """A leader that stood still would hold the Lease, and every other controller would wait for it."""
    reconciler, queue = Stumbling(error), WorkQueue[Key]()
    work = Work(None, Store(), queue, reconciler)  # type: ignore[arg-type]
    threading.Thread(target=work._begin, daemon=True).start()
    assert reconciler.looked.wait(30)
    assert not reconciler.errors
    queue.close()
