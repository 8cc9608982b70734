"""The watches, which kopf runs: three handlers put what they see into the store, and what it touches into the queue.

kopf does nothing else here: no finalizers, no annotations, no index, no posting, no peering. A handler that raised
would be silent until the next full list, so the handlers do next to nothing, and what fails nonetheless is read anew by
our own workers, which retry ever more rarely.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from conntrack_operator.cluster.connection import Credentials, read_credentials
from conntrack_operator.cluster.objects import (
    ENDPOINT_SLICES,
    HOST_PODS,
    NODE_CONNTRACKS,
    NODES,
    POLICIES,
    SERVICES,
    Kind,
)
from conntrack_operator.errors import ConntrackOperatorError

from .figures import Figures
from .store import Store
from .touched import Key
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

RESTART_SECONDS = 3.0
"""Between the end of all watches and their new beginning."""

AFTER_RELIST_SECONDS = 1.0
"""How long after kopf has listed anew the store is replaced: a cut watch may have missed deletions."""


KINDS = (POLICIES, NODES, NODE_CONNTRACKS, SERVICES, ENDPOINT_SLICES, HOST_PODS)
"""What is watched, always: kopf takes no further kind while it runs, and the Services must be known before the first
rule is. It costs one line to the API server each, and a moment for every endpoint that comes or goes."""


class _Backoffs:
    """Pauses between tries to reach the API server, without end: a controller that gives up helps nobody."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.2, 0.5, 1.0)
        while True:
            yield 2.0


def settings_for_watching() -> kopf.OperatorSettings:
    """Return kopf's settings: only watch, reconnect soon, never hang."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 3
    settings.watching.reconnect_backoff = 0.1
    # The API server sends a bookmark every minute: a line that is silent for longer is dead.
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = 500
    for kind in KINDS:
        if kind.field_selector:
            settings.watching.field_selectors[*_group_and_version(kind), kind.plural] = kind.field_selector
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 3
    settings.networking.error_backoffs = _Backoffs()
    return settings


def registry_for(store: Store, queue: WorkQueue[Key], kubeconfig: str | None) -> kopf.OperatorRegistry:
    """Return the handlers. They run in kopf's loop and must not wait for anything."""
    registry = kopf.OperatorRegistry()

    def watch(kind: Kind, put: Callable[..., set[Key]]) -> None:
        async def saw(event: kopf.RawEvent, **_: Any) -> None:
            document: Any = event["object"]
            if event["type"] is None:
                queue.add(Key("list"), AFTER_RELIST_SECONDS)
            try:
                queue.add_all(put(document, deleted=event["type"] == "DELETED"))
            except Exception as error:  # noqa: BLE001 - kopf would swallow it, and the change with it
                name = document["metadata"].get("name")
                log.error("%s %s: %s: %s; everything is read anew", kind.kind, name, type(error).__name__, error)  # noqa: TRY400
                queue.add(Key("list"), AFTER_RELIST_SECONDS)

        group, version = _group_and_version(kind)
        kopf.on.event(group, version, kind.plural, id=f"saw-{kind.plural}", registry=registry)(saw)

    for kind in KINDS:
        watch(kind, store.puts[kind])

    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        try:
            return _connection_info(read_credentials(kubeconfig))
        except ConntrackOperatorError as error:
            raise kopf.TemporaryError(str(error), delay=2) from error

    kopf.on.login(id="log-in", registry=registry)(log_in)
    return registry


class Watches:
    """kopf at work, until the end, and begun anew in between when somebody asks for it."""

    def __init__(self, store: Store, queue: WorkQueue[Key], kubeconfig: str | None, figures: Figures) -> None:
        self._figures = figures
        self._store, self._queue, self._kubeconfig = store, queue, kubeconfig
        # It calls every try to reach the API server an error, seven a round, and prints tracebacks. Our own requests
        # say the same, ever more rarely, and `run` says why the watches ended.
        for name in ("_cogs.clients.watching", "_core.reactor.orchestration", "_core.reactor.running"):
            logging.getLogger(f"kopf.{name}").setLevel(logging.CRITICAL)
        self._ended = threading.Event()
        self._run_ends = threading.Event()

    def run(self) -> None:
        """Run kopf until `end`. When it ends before, begin anew: what it missed the next list brings."""
        while not self._ended.is_set():
            self._run_ends = threading.Event()
            if self._ended.is_set():
                return
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    asyncio.run(self._watch())
            except Exception as error:  # noqa: BLE001 - whatever ended the watches, they are needed
                log.error(  # noqa: TRY400 - one line each time
                    "the watches ended: %s: %s; again in %.0f s", type(error).__name__, error, RESTART_SECONDS
                )
            if not self._ended.wait(RESTART_SECONDS):
                self._figures.watch_restarts.add()
                self._queue.add(Key("list"))

    async def _watch(self) -> None:
        try:
            await kopf.operator(
                registry=registry_for(self._store, self._queue, self._kubeconfig),
                settings=settings_for_watching(),
                # Only its peering would use it; left out, kopf asks for the name of the user, and a container's
                # number has none (tried: every run of the watches ended with a KeyError).
                identity="conntrack-operator",  # type: ignore[arg-type] # a private type, of a string
                standalone=True,
                clusterwide=True,
                stop_flag=self._run_ends,
            )
        finally:
            # kopf waits for it in a thread that asyncio.run waits for: ended by anything else, it would never return.
            self._run_ends.set()

    def begin_anew(self) -> None:
        """End what is being watched and watch again, with a look at what there is to be watched."""
        self._run_ends.set()

    def end(self) -> None:
        """Watch no more. kopf may take 5 s over it; the watches write nothing and hold nothing."""
        self._ended.set()
        self._run_ends.set()


def _group_and_version(kind: Kind) -> tuple[str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version


def _connection_info(credentials: Credentials) -> kopf.ConnectionInfo:
    return kopf.ConnectionInfo(
        server=credentials.server,
        ca_path=credentials.ca_path,
        insecure=credentials.insecure,
        certificate_path=credentials.certificate_path,
        private_key_path=credentials.private_key_path,
        token=credentials.token,
        username=credentials.username,
        password=credentials.password,
        proxy_url=credentials.proxy_url,
    )
