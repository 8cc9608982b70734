"""What our NOTRACK rules let by, read from the kernel itself.

nft would print the same, as a process of its own that reads every set too: 20 ms of CPU, at every scrape. A dump of our
table's rules takes under 1 ms. Kernel file: net/netfilter/nf_tables_api.c (nf_tables_dump_rules; the table is filtered
there since Linux 4.4); attributes: include/uapi/linux/netfilter/nf_tables.h.
"""

from collections import defaultdict
from collections.abc import Mapping

from conntrack_operator.decide.notrack_table import Count, label_in

from .netlink import BODY, Netlink, attribute, attributes

NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
GETRULE = 7  # NFT_MSG_GETRULE
INET = 1  # NFPROTO_INET

_TABLE = 1  # NFTA_RULE_TABLE
_EXPRESSIONS = 4  # NFTA_RULE_EXPRESSIONS
_USERDATA = 7  # NFTA_RULE_USERDATA
_NAME, _DATA = 1, 2  # NFTA_EXPR_NAME, NFTA_EXPR_DATA
_BYTES, _PACKETS = 1, 2  # NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS, 64 bits, big-endian
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT (libnftnl/udata.h): type and length of one byte each, then the text and a NUL


def read_bypassed(table: str) -> Mapping[str, Count]:
    """Return packets and bytes that each NOTRACK rule of the inet `table` let by, by the rule's label.

    Empty when there is no such table. Raises Unsupported without NET_ADMIN or nf_tables, Retry when it fails this time.
    """
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    asked = attribute(_TABLE, table.encode() + b"\0")
    with Netlink() as netlink:
        for rule in netlink.messages(GETRULE, dump=True, family=INET, payload=asked, subsystem=NFTABLES):
            found = {each.type: each for each in attributes(rule, BODY, len(rule))}
            if not {_TABLE, _EXPRESSIONS, _USERDATA} <= found.keys() or _text(rule, *found[_TABLE][1:]) != table:
                continue
            label = label_in(_comment_in(rule[found[_USERDATA].start : found[_USERDATA].end]))
            if label:
                packets, size = _count_in(rule, *found[_EXPRESSIONS][1:])
                sums[label][0] += packets
                sums[label][1] += size
    return {label: (packets, size) for label, (packets, size) in sums.items()}


def _comment_in(userdata: bytes) -> str:
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == _COMMENT:
            return _text(userdata, at + 2, at + 2 + length)
        at += 2 + length
    return ""


def _count_in(rule: bytes, start: int, end: int) -> Count:
    packets = size = 0
    for element in attributes(rule, start, end):
        parts = {each.type: each for each in attributes(rule, element.start, element.end)}
        if {_NAME, _DATA} <= parts.keys() and _text(rule, *parts[_NAME][1:]) == "counter":
            for each in attributes(rule, *parts[_DATA][1:]):
                value = int.from_bytes(rule[each.start : each.end], "big")
                packets += value if each.type == _PACKETS else 0
                size += value if each.type == _BYTES else 0
    return packets, size


def _text(buffer: bytes, start: int, end: int) -> str:
    return buffer[start:end].partition(b"\0")[0].decode("utf-8", "replace")
