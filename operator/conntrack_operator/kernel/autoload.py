"""Kernel modules that would be loaded by merely asking, and how an observing agent asks without loading any.

The kernel loads the module behind a netlink request by itself (request_module in nfnetlink_rcv_msg,
net/netfilter/nfnetlink.c, in __netlink_create, net/netlink/af_netlink.c, and in inet_diag_lock_handler,
net/ipv4/inet_diag.c): a look at nftables, the table's entries or the sockets leaves modules behind. Within
`loading_nothing` only what is there already is asked. What is not loaded has no rules and no tables.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType

from conntrack_operator.errors import Unsupported

from .roots import Roots

NFNETLINK, CTNETLINK, NF_TABLES = "nfnetlink", "nf_conntrack_netlink", "nf_tables"
TCP_DIAG, UDP_DIAG = "tcp_diag", "udp_diag"

SYMBOLS: Mapping[str, str] = MappingProxyType(
    {
        "nfnetlink_subsys_register": NFNETLINK,
        "ctnetlink_get_conntrack": CTNETLINK,
        "nft_register_chain_type": NF_TABLES,
        "tcp_diag_dump": TCP_DIAG,
        "udp_diag_dump": UDP_DIAG,
    }
)
"""A function of each, by which /proc/kallsyms tells that it is built in: then no module is named beside it."""
_SYMBOL = re.compile(r"^[0-9a-f]+ [tT] (\w+)$")


class NotLoaded(Unsupported):
    """Asking would load a kernel module, and nothing is to be loaded now. `module` is its name."""

    def __init__(self, module: str) -> None:
        self.module = module
        super().__init__(f"the kernel module {module} is not loaded, and looking must not load it")


_unseen: ContextVar[tuple[Callable[[str], bool], set[str]] | None] = ContextVar("unseen", default=None)
_built_in: dict[object, frozenset[str]] = {}
"""By the file it was read from: it is the same until the next boot, and the whole list costs 60 ms."""


def is_here(module: str, roots: Roots | None = None) -> bool:
    """Tell whether `module` is loaded or built in, so that asking it loads nothing. Raises nothing.

    A kernel without /proc/modules loads none. Where nothing tells what is built in, it counts as not loaded.
    """
    roots = roots or Roots()
    if (roots.sys / "module" / module).exists():
        return True
    try:
        listed = roots.file("modules").read_text()
    except OSError:
        return True
    return any(line.startswith(f"{module} ") for line in listed.splitlines()) or module in _names_built_in(roots)


def _names_built_in(roots: Roots) -> frozenset[str]:
    path = roots.file("kallsyms")
    if path not in _built_in:
        found = set()
        with contextlib.suppress(OSError), path.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                match = _SYMBOL.match(line)
                if match and match[1] in SYMBOLS:
                    found.add(SYMBOLS[match[1]])
        _built_in[path] = frozenset(found)
    return _built_in[path]


@contextlib.contextmanager
def loading_nothing(roots: Roots | None = None) -> Iterator[set[str]]:
    """Within the block nothing is asked that would load a module; gives the names of those that were not asked.

    It holds for this thread, and for threads that are started with its context.
    """
    unseen: set[str] = set()
    token = _unseen.set((lambda module: is_here(module, roots), unseen))
    try:
        yield unseen
    finally:
        _unseen.reset(token)


def about_to_ask(module: str) -> None:
    """Raise NotLoaded where asking would load `module` and nothing is to be loaded. Call it before asking."""
    asked = _unseen.get()
    if asked is not None and not asked[0](module):
        asked[1].add(module)
        raise NotLoaded(module)
