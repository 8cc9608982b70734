"""Everything on this node that has to do with packets a policy is about, read at one moment."""

import contextlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.model.surroundings import UNREAD, Firewall, PortRanges, Service, Surroundings

from .addresses import local_addresses
from .autoload import NotLoaded
from .failsafe import read_failsafe
from .firewall import read_firewall
from .other_namespaces import read_other_namespaces
from .roots import Roots
from .translated import Translated, read_translated
from .writers import kube_proxies

CONNTRACK = "nf_conntrack"
_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
_TRANSLATORS = frozenset({"openvswitch", "act_ct"})
"""Modules that translate without any chain, by calling nf_nat themselves (nf_ct_nat, net/netfilter/nf_nat_ovs.c). Where
there are neither they nor chains of type nat nothing translates: all of nf_nat's hooks go with the last such chain
(nf_nat_unregister_fn, net/netfilter/nf_nat_core.c), and marks that it left on entries do nothing any more."""


def read_surroundings(  # noqa: PLR0913 - what is known of what is asked
    roots: Roots,
    services: Sequence[Service] = (),
    interest: PortRanges | None = None,
    api_server: tuple[str, int] | None = None,
    *,
    entries: bool = True,
    others: bool = True,
) -> Surroundings:
    """Return what is around; what could not be read is among the firewall's problems. Raises nothing.

    `services` is handed through. `interest` are the ports that rules are about: without it no entry of the table is
    looked at, every rule of every firewall is told, whatever their number, and every port this node lives by.
    `api_server` is host and port as this process is configured. With `entries` false no entry is looked at, with
    `others` false those of other network namespaces are not counted. Whether timed elements expire is not tested here.
    """
    firewall = read_firewall(interest)
    modules = read_modules(roots)
    translated, problem = Translated({}, {}), ""
    if entries and interest and (firewall.nat or _TRANSLATORS.intersection(modules)):
        translated, problem = _translated(roots, interest)
    if problem:
        firewall = replace(firewall, problems=(*firewall.problems, (UNREAD, problem)))
    return Surroundings(
        firewall=firewall,
        services=tuple(services),
        failsafe=read_failsafe(roots, api_server, interest),
        translated=translated.here,
        translated_elsewhere=translated.elsewhere,
        local_addresses=_own_addresses(),
        routes=any(1 in _numbers(roots.file(f"sys/net/{switch}")) for switch in _FORWARDING),
        local_port_range=_port_range(roots.file("sys/net/ipv4/ip_local_port_range")),
        other_entries=sum(namespace.entries for namespace in read_other_namespaces(roots)[0]) if others else 0,
        keepalive_seconds=next(iter(_numbers(roots.file("sys/net/ipv4/tcp_keepalive_time"))), None),
        kube_proxy=_has_kube_proxy(roots, firewall),
        modules=modules,
    )


def read_modules(roots: Roots) -> Mapping[str, tuple[str, ...]]:
    """Return the loaded modules that need nf_conntrack, each with those that use it; none where it is built in."""
    users: dict[str, tuple[str, ...]] = {}
    with contextlib.suppress(OSError):
        for line in roots.file("modules").read_text().splitlines():
            name, _, _, used_by, *_ = [*line.split(), "", "", "", ""]
            users[name] = tuple(sorted(user for user in used_by.split(",") if user not in ("", "-")))
    found: dict[str, tuple[str, ...]] = {}
    waiting = list(users.get(CONNTRACK, ()))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = users.get(name, ())
            waiting.extend(found[name])
    return dict(sorted(found.items()))


def _translated(roots: Roots, interest: PortRanges) -> tuple[Translated, str]:
    if not any(_numbers(roots.netfilter / "nf_conntrack_count")):
        return Translated({}, {}), ""  # not loaded, or no entry at all
    try:
        local = [ipaddress.ip_address(address).packed for address in local_addresses()]
        return read_translated(interest, local), ""
    except NotLoaded:
        return Translated({}, {}), ""  # whoever wants nothing loaded says what was not looked at
    except ConntrackOperatorError as error:
        return Translated({}, {}), f"live translated entries cannot be read: {error}"


def _own_addresses() -> tuple[str, ...] | None:
    try:
        return tuple(sorted(local_addresses()))
    except ConntrackOperatorError:
        return None  # then any address may be this node's


def _has_kube_proxy(roots: Roots, firewall: Firewall) -> bool:
    return any(kube_proxies(roots)) or any(
        chain.table == "kube-proxy" or chain.name.startswith("KUBE-SERVICES") for chain in firewall.chains
    )


def _port_range(path: Path) -> tuple[int, int]:
    numbers = list(_numbers(path))
    return (numbers[0], numbers[1]) if len(numbers) == 2 else Surroundings().local_port_range


def _numbers(path: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        yield from [int(word) for word in path.read_text().split()]
