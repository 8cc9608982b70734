"""What helps to name who took our nftables table away: the handles of all tables, and files that flush everything."""

import re

from conntrack_operator.decide.rivals import Table

from .netlink import BODY, HEADER, Netlink, attributes
from .roots import Roots

NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
GET_TABLE = 1  # NFT_MSG_GETTABLE
NAME, HANDLE = 1, 4  # NFTA_TABLE_NAME, NFTA_TABLE_HANDLE (Linux 4.17)
LARGEST_BYTES = 1 << 20
"""Of a configuration file; a larger one is none."""
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*
_FLUSH = re.compile(r"\s*flush\s+ruleset\b")


def read_handles() -> dict[Table, int]:
    """Return the handle of every nftables table of this network namespace, by family and name.

    A handle is given once: a table that was deleted and made again has another. Names alone are read, never contents.
    Raises errors.Unsupported (not permitted, no nf_tables), errors.Retry.
    """
    handles: dict[Table, int] = {}
    with Netlink() as netlink:
        for answer in netlink.messages(GET_TABLE, dump=True, subsystem=NFTABLES):
            found = {kind: answer[start:end] for kind, start, end in attributes(answer, BODY, len(answer))}
            family = _FAMILIES.get(answer[HEADER.size], str(answer[HEADER.size]))
            if NAME in found:
                name = found[NAME].rstrip(b"\0").decode(errors="replace")
                handles[family, name] = int.from_bytes(found.get(HANDLE, b""), "big")
    return handles


def read_flushers(roots: Roots) -> tuple[str, ...]:
    """Return where this machine's nftables configuration flushes the whole ruleset, as file:line. Raises nothing."""
    paths = [roots.etc / "nftables.conf", roots.etc / "sysconfig/nftables.conf"]
    paths += sorted((roots.etc / "nftables").glob("*.nft")) + sorted((roots.etc / "nftables.d").glob("*.nft"))
    places = []
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="replace") as stream:
                lines = stream.read(LARGEST_BYTES).splitlines()
        except OSError:
            continue
        places += [f"{path}:{number}" for number, line in enumerate(lines, start=1) if _FLUSH.match(line)]
    return tuple(places)
