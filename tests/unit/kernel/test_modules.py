"""Modules: read from a /proc/modules of somebody else's kernel, unloaded by a stand-in for the kernel."""

import errno

import pytest

from conntrack_operator.errors import Refused, Unsupported
from conntrack_operator.kernel.modules import load, may_unload, presence_of_conntrack, read_modules, unload
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.surroundings import LoadedModule

MODULES = """\
nft_masq 12288 4 - Live 0x0000000000000000
nft_chain_nat 12288 2 - Live 0x0000000000000000
nf_nat 65536 2 nft_masq,nft_chain_nat, Live 0x0000000000000000
nf_conntrack 212992 2 nft_masq,nf_nat, Live 0x0000000000000000
nf_defrag_ipv4 12288 1 nf_conntrack, Live 0x0000000000000000
ext4 1150976 1 - Live 0x0000000000000000
vboxdrv 712704 2 [permanent], Live 0x0000000000000000 (OE)
"""


@pytest.fixture
def roots(tmp_path):
    """Return the roots of a host with loadable modules, this one loaded."""
    made = Roots(proc=tmp_path / "proc", sys=tmp_path / "sys")
    made.netfilter.mkdir(parents=True)
    (made.netfilter / "nf_conntrack_count").write_text("0\n")
    (made.proc / "modules").write_text(MODULES)
    module = made.sys / "module/nf_conntrack"
    module.mkdir(parents=True)
    (module / "initstate").write_text("live\n")
    return made


def test_modules_that_need_conntrack(roots):
    """Those that use it, and those that use them; not what it uses itself, and nobody else."""
    assert read_modules(roots) == (
        LoadedModule("nf_conntrack", 2, ("nft_masq", "nf_nat")),
        LoadedModule("nf_nat", 2, ("nft_masq", "nft_chain_nat")),
        LoadedModule("nft_chain_nat", 2),
        LoadedModule("nft_masq", 4),
    )


def test_presence(roots):
    """A module has a state, what is built in has none, and without its files it is absent."""
    assert presence_of_conntrack(roots) == "loaded"
    (roots.sys / "module/nf_conntrack/initstate").unlink()
    assert presence_of_conntrack(roots) == "built in"
    (roots.netfilter / "nf_conntrack_count").unlink()
    assert presence_of_conntrack(roots) == "absent"


@pytest.mark.parametrize(
    ("effective", "disabled", "expected"),
    [("000001ffffffffff", "0", True), ("0000000000001000", "0", False), ("000001ffffffffff", "1", False)],
)
def test_may_unload(roots, effective, disabled, expected):
    """It takes CAP_SYS_MODULE, and a kernel that still allows it."""
    (roots.proc / "self").mkdir()
    (roots.proc / "self/status").write_text(f"Name:\tx\nCapEff:\t{effective}\n")
    (roots.proc / "sys/kernel").mkdir()
    (roots.proc / "sys/kernel/modules_disabled").write_text(f"{disabled}\n")
    assert may_unload(roots) is expected


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.EWOULDBLOCK, Refused, "grep"),
        (errno.EPERM, Unsupported, "CAP_SYS_MODULE"),
        (errno.ENOSYS, Unsupported, "on this kernel"),
    ],
)
def test_unloading_refused(number, error, words):
    """Each refusal of the kernel is one sentence with what to do."""
    with pytest.raises(error, match=words):
        unload("nf_nat", lambda _: number)


@pytest.mark.parametrize("number", [0, errno.ENOENT])
def test_unloaded(number):
    """Gone is gone, whoever did it."""
    asked = []
    unload("nf_nat", lambda name: asked.append(name) or number)
    assert asked == ["nf_nat"]


def test_loading_what_is_there_does_nothing(roots, monkeypatch):
    """With the module there no program is run."""
    monkeypatch.setenv("PATH", "/nowhere")
    load(roots)
