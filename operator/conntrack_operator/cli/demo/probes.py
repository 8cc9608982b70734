"""What the demo asks before, during and after a change: the agent's own probes, from the clients' side of the cable.

In a full table nothing fresh comes about, which is the very trouble. So a client that has an entry already is asked
too: a change that cut it off would be undone.
"""

import os
import socket
import time
from pathlib import Path

from conntrack_operator.agent.probes import Probe, asked_for, name_server_probe
from conntrack_operator.kernel.roots import Roots

from .stage import CLIENT, SERVER, TCP_PORT, TRANSLATED_PORT, Namespace, Stage
from .traffic import PORT, QUERY


class Regular:
    """A client that goes on asking the name server from one port."""

    name = "DNS of a client that has an entry"

    def __init__(self, stage: Stage) -> None:
        self._socket = stage.client.socket(socket.SOCK_DGRAM)
        self._socket.bind((CLIENT, 0))
        self._socket.connect((SERVER, PORT))

    def close(self) -> None:
        """Ask no more."""
        self._socket.close()

    def ask(self, seconds: float) -> bool:
        """Send one query; tell whether it was answered within that time."""
        identity, deadline = os.urandom(2), time.monotonic() + seconds
        self._socket.send(identity + QUERY[2:])
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            if self._socket.recv(512)[:2] == identity:  # answers to earlier queries may come late
                return True
        return False


def probes_of(stage: Stage, regular: Regular, folder: Path) -> list[Probe]:
    """Return what must go on: the regular client, a query of a new one, a new TCP connection."""
    (folder / "resolv.conf").write_text(f"nameserver {SERVER}\n")
    fresh = [*name_server_probe(Roots(etc=folder)), asked_for(f"{SERVER}:{TCP_PORT}")]
    return [Probe(regular.name, regular.ask), *(_from(stage.client, probe) for probe in fresh)]


def translated_probe(stage: Stage) -> Probe:
    """Return a probe of the port that a translation leads on."""
    return _from(stage.client, asked_for(f"{SERVER}:{TRANSLATED_PORT}"))


def _from(namespace: Namespace, probe: Probe) -> Probe:
    def ask(seconds: float) -> bool:
        with namespace.inside():
            return probe.ask(seconds)

    return Probe(probe.name, ask)
