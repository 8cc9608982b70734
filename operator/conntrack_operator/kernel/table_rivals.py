"""What helps to name a rival by its rules: handles of all tables, files that flush everything, kube-proxy's chains."""

import contextlib
import re

from conntrack_operator.decide.rivals import Table
from conntrack_operator.errors import ConntrackOperatorError, Retry

from .firewall_iptables import legacy_tables
from .netlink import BODY, HEADER, Netlink, attribute, attributes
from .programs import output_of
from .roots import Roots

NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
GET_TABLE, GET_CHAIN = 1, 4  # NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN
NAME, HANDLE = 1, 4  # NFTA_TABLE_NAME, NFTA_TABLE_HANDLE (Linux 4.17)
LARGEST_BYTES = 1 << 20
"""Of a configuration file; a larger one is none."""
KUBE_PROXY_TABLE, KUBE_PROXY_CHAIN = b"kube-proxy", b"KUBE-SERVICES"
"""Its own table in nftables mode; in iptables and ipvs mode its chain in table nat."""
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


def has_kube_proxy_rules() -> bool:
    """Tell whether kube-proxy's rules are in this network namespace. Raises nothing; what cannot be read is not there.

    Asked by name, so that it costs the same however many Services there are. iptables-legacy's take NET_RAW.
    """
    table = attribute(NAME, KUBE_PROXY_TABLE + b"\0")
    # NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
    chain = attribute(1, b"nat\0") + attribute(3, KUBE_PROXY_CHAIN + b"\0")
    with contextlib.suppress(ConntrackOperatorError):
        if any(_is_there(GET_TABLE, each, table) or _is_there(GET_CHAIN, each, chain) for each in (2, 10)):
            return True
    with contextlib.suppress(ConntrackOperatorError):
        if "nat" in legacy_tables("ip"):
            with output_of(("iptables-legacy-save", "-t", "nat")) as lines:
                # Chains come before rules.
                return any(line.startswith(f":{KUBE_PROXY_CHAIN.decode()} ") for line in lines)
    return False


def _is_there(kind: int, family: int, name: bytes) -> bool:
    with contextlib.suppress(Retry), Netlink() as netlink:  # ENOENT is one
        return any(netlink.messages(kind, family=family, payload=name, subsystem=NFTABLES))
    return False
