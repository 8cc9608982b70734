"""A pytest plugin: one of the processes of `make test` runs its own tests, then those that any of them may run.

Its own are those of one kind (tests/lab/halves.py): `machine`, which one process alone has, or `beside`, which others
share. What is shared goes module by module: a process that comes to one claims it by a file in a folder all know, so
that none waits for the others at the end.
What was collected and what was run is written there, for `tests.lab.side_by_side` to see that nothing was left out.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab import halves
from tests.lab.halves import Kind, kind_of


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    parser.addoption("--own", choices=[Kind.MACHINE.value, Kind.BESIDE.value])
    parser.addoption("--share", type=Path, help="the folder of claims")


def pytest_configure(config: pytest.Config) -> None:
    """Begin."""
    halves.run_folder = config.getoption("--share")
    config.pluginmanager.register(Sharing(Kind(config.getoption("--own")), config.getoption("--share")))


class Sharing:
    """What this process runs."""

    def __init__(self, own: Kind, folder: Path) -> None:
        self._own, self._folder = own, folder
        self._claimed: dict[tuple[Path, Kind], bool] = {}
        self._collected: list[str] = []
        self._ran: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Have our own first, then what is shared, and nothing of the others."""
        self._collected = [item.nodeid for item in items]
        kinds = [(kind_of(item), item) for item in items]
        own = [item for kind, item in kinds if kind is self._own]
        shared = [item for kind, item in kinds if kind is Kind.NAMESPACES]
        # Those that wait for no other process first; they take longest too.
        shared.sort(key=halves.needs_steady_sizes)
        items[:] = own + shared

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run what is ours and what we claim."""
        if session.testsfailed or session.config.option.collectonly:
            return None  # pytest says what is wrong
        mine = self._claim(session.items)
        item = next(mine, None)
        while item is not None:
            following = next(mine, None)
            self._ran.append(item.nodeid)
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def _claim(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        for item in items:
            key = item.path, kind_of(item)
            if key not in self._claimed:
                self._claimed[key] = key[1] is Kind.MACHINE or self._is_first(item.path)
            if self._claimed[key]:
                yield item

    def _is_first(self, module: Path) -> bool:
        # By its whole path: folders below tests/unit are named like those beside it.
        claim = self._folder / "-".join(module.parts[1:])
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def pytest_sessionfinish(self) -> None:
        """Write down what was collected and run."""
        document = {"collected": self._collected, "ran": self._ran}
        (self._folder / f"{os.getpid()}.json").write_text(json.dumps(document))


def left_out(folder: Path) -> list[str]:
    """Return the tests that were collected and that no process of the run came to, or that two ran."""
    documents = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    ran = Counter(test for document in documents for test in document["ran"])
    collected = {test for document in documents for test in document["collected"]}
    return sorted(test for test in collected if ran[test] != 1)
