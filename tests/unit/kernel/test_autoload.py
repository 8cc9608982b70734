"""Modules that would be loaded by asking: told from somebody else's /proc and /sys, and not asked."""

import socket
import subprocess
import threading
from pathlib import Path

import pytest

from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel import firewall, nftables
from conntrack_operator.kernel.autoload import (
    CTNETLINK,
    NF_TABLES,
    NFNETLINK,
    NotLoaded,
    about_to_ask,
    is_here,
    loading_nothing,
)
from conntrack_operator.kernel.counters import read_counters
from conntrack_operator.kernel.failsafe import Listener, read_listeners
from conntrack_operator.kernel.other_namespaces import read_other_namespaces
from conntrack_operator.kernel.roots import Roots

LISTENERS = [Listener(80, 1)]
KALLSYMS = """\
ffffffff81f2c5a0 T nfnetlink_subsys_register
ffffffff81f4aa30 t nft_chain_filter_init
ffffffffc0a01230 t ctnetlink_get_conntrack\t[nf_conntrack_netlink]
"""


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """Return a host with loadable modules, of which nf_conntrack alone is loaded; nothing is known to be built in."""
    made = Roots(proc=tmp_path / "proc", sys=tmp_path / "sys", run=tmp_path / "run")
    made.proc.mkdir()
    (made.proc / "modules").write_text("nf_conntrack 212992 0 - Live 0x0\nnf_tables_of_others 1 0 - Live 0x0\n")
    (made.proc / "kallsyms").write_text("")
    (made.sys / "module/nf_conntrack").mkdir(parents=True)
    return made


def test_what_is_here(roots: Roots) -> None:
    """Loaded, by either of two lists, or built in, by a function of its own that belongs to no module."""
    assert not is_here(NF_TABLES, roots)
    (roots.proc / "modules").write_text("nf_tables 1 0 - Live 0x0\n")
    assert is_here(NF_TABLES, roots)
    assert not is_here(CTNETLINK, roots)
    (roots.sys / "module" / CTNETLINK).mkdir()
    assert is_here(CTNETLINK, roots)


def test_what_is_built_in(tmp_path: Path) -> None:
    """A function of a loaded module has its name beside it; one without a name is the kernel's own."""
    roots = Roots(proc=tmp_path, sys=tmp_path)
    (tmp_path / "modules").write_text("")
    (tmp_path / "kallsyms").write_text(KALLSYMS)
    assert [is_here(name, roots) for name in (NFNETLINK, NF_TABLES, CTNETLINK)] == [True, False, False]


def test_a_kernel_that_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc/modules everything that there can be is there."""
    roots = Roots(proc=tmp_path, sys=tmp_path)
    monkeypatch.setattr(Roots, "file", lambda self, name: self.proc / name)
    assert is_here(NF_TABLES, roots)


def test_nothing_is_asked(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    """No netfilter socket is opened and no program is run; what is not loaded has no rules, tables or counters."""
    opened = []
    real = socket.socket

    def opening(family: int = -1, kind: int = -1, protocol: int = -1, *more: object) -> socket.socket:
        opened.append((family, protocol))
        return real(family, kind, protocol, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "socket", opening)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was run"))
    monkeypatch.setattr("conntrack_operator.kernel.firewall_iptables.legacy_tables", lambda _family: [])
    monkeypatch.setattr("conntrack_operator.kernel.failsafe.listed", lambda: LISTENERS)
    with loading_nothing(roots) as unseen:
        found = firewall.read_firewall()
        assert (found.chains, found.problems, found.nat) == ((), (), False)
        assert nftables.read_table() is None
        with pytest.raises(NotLoaded, match="nfnetlink is not loaded"):
            read_counters()
        # That of /proc, which is asked otherwise: another process may begin to listen at any moment.
        assert read_listeners() is LISTENERS
        namespaces, _ = read_other_namespaces(roots)
        assert namespaces == ()
    assert unseen == {NFNETLINK, NF_TABLES, "tcp_diag"}
    assert not [each for each in opened if each == (socket.AF_NETLINK, 12)]


def test_each_subsystem_has_its_module(roots: Roots) -> None:
    """With nfnetlink there, a request to a subsystem that is not is the one that is kept back."""
    (roots.sys / "module" / NFNETLINK).mkdir()
    with loading_nothing(roots) as unseen:
        with pytest.raises(NotLoaded, match=CTNETLINK):
            read_counters()
        assert firewall.read_tables() == []
    assert unseen == {CTNETLINK, NF_TABLES}


def test_threads_of_others_are_free(roots: Roots) -> None:
    """A trial's thread, or a report's, is not held back by a preview in another."""
    answers: list[object] = []

    def ask() -> None:
        try:
            about_to_ask(NF_TABLES)
        except NotLoaded:
            answers.append("held back")
        else:
            answers.append("asked")

    with loading_nothing(roots):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        ask()
    ask()
    assert answers == ["asked", "held back", "asked"]


def test_nft_that_is_not_installed_is_still_said(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules would be refused for it: a preview must not promise them."""
    monkeypatch.setenv("PATH", str(roots.proc))
    with loading_nothing(roots), pytest.raises(Unsupported, match="nft is not installed"):
        nftables.read_table()
