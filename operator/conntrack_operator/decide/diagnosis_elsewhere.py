"""Diagnosis, last question: is it another table that is full? Pure.

Four tables look the same to a program whose connection fails, and none of them shows in this one's counters: another
network namespace's (the limit is the machine's, the count is each namespace's own), EC2's behind security groups,
Cilium's BPF map, and Open vSwitch's limits by zone.
"""

from collections.abc import Iterator

from .diagnosis_fullness import FULL_PERCENT, HIGH_PERCENT, RECENT_SECONDS, lines_of, own_lines
from .finding import Finding, Severity, ago_words, counted, percent, time_words
from .symptoms import Allowance, FullLine, NamespaceUse, PinnedMap, Symptoms, ZoneLimit


def findings_of_elsewhere(symptoms: Symptoms) -> Iterator[Finding]:
    """Yield what is full, was full or fills elsewhere."""
    for namespace in symptoms.elsewhere.namespaces:
        yield from _of_namespace(namespace, symptoms)
    yield from _of_gone(symptoms)
    for allowance in symptoms.elsewhere.allowances:
        yield from _of_allowance(allowance)
    yield from _of_maps(symptoms.elsewhere.maps)
    for zone in symptoms.elsewhere.zones:
        yield from _of_zone(zone)


def fills_elsewhere(symptoms: Symptoms) -> bool:
    """Tell whether a namespace that is there needs a higher limit, which is the machine's."""
    return any(_severity(namespace, symptoms) for namespace in symptoms.elsewhere.namespaces)


def _severity(namespace: NamespaceUse, symptoms: Symptoms) -> Severity | None:
    used = percent(namespace.entries, namespace.max_entries)
    lines = _lines_of(namespace, symptoms)
    if used >= FULL_PERCENT:
        return "critical"
    lost = namespace.lost_to_full or namespace.early_drop
    if lost and lines and symptoms.now_seconds - lines[-1].at_seconds <= RECENT_SECONDS:
        return "critical"
    return "warning" if lost or used >= HIGH_PERCENT else None


def _of_namespace(namespace: NamespaceUse, symptoms: Symptoms) -> Iterator[Finding]:
    severity = _severity(namespace, symptoms)
    if severity is None:
        return
    used = percent(namespace.entries, namespace.max_entries)
    state = "is full" if used >= FULL_PERCENT else "is filling" if used >= HIGH_PERCENT else "was full"
    entries = f"{namespace.entries:,} of {namespace.max_entries:,} entries"
    lines = _lines_of(namespace, symptoms)
    logged = f" Kernel log: {_log_words(lines, symptoms)}." if lines else ""
    yield Finding(
        severity,
        "OtherNamespaceFull",
        f"The table of another network namespace {state}: {namespace.name}, {entries}.",
        f"It lost {counted(namespace.lost_to_full, 'packet')} of new connections and threw out"
        f" {counted(namespace.early_drop, 'entry', 'entries')}.{logged} A pod has a table of its own once something in"
        " it tracks (a sidecar's NAT, a firewall); the limit is the machine's, the count its own.",
        "Raise the machine's limit (nf_conntrack_max on the host), or stop tracking inside that pod.",
    )


def _of_gone(symptoms: Symptoms) -> Iterator[Finding]:
    """Yield a note where the log tells of a full table that is neither this one nor one that still is there."""
    known = set(own_lines(symptoms))
    for namespace in symptoms.elsewhere.namespaces:
        known.update(_lines_of(namespace, symptoms))
    lines = tuple(line for line in symptoms.log.lines if line not in known)
    if not lines:
        return
    named = sorted({line.namespace for line in lines if line.namespace is not None})
    shown = ", ".join(str(inode) for inode in named[-3:])
    which = f"network namespace {shown}" if len(named) == 1 else f"{counted(len(named), 'other network namespace')}"
    recent = symptoms.now_seconds - lines[-1].at_seconds <= RECENT_SECONDS
    yield Finding(
        "warning" if recent else "info",
        "AnotherTableWasFull",
        f"Another table on this machine was full: {_log_words(lines, symptoms)}.",
        f"The log names {which}, {'not among those seen here (gone, or out of sight)'}."
        if named
        else "The log does not say which; this one's counters show no loss, so it was a pod's or a container's own.",
        "Look for pods that ended at that time, or run doctor in the pod's network namespace.",
    )


def _lines_of(namespace: NamespaceUse, symptoms: Symptoms) -> tuple[FullLine, ...]:
    return lines_of(symptoms.log, (namespace.inode,), namespace.drop, namespace.began_seconds)


def _log_words(lines: tuple[FullLine, ...], symptoms: Symptoms) -> str:
    last = lines[-1].at_seconds
    return f"{counted(len(lines), 'line')}, the last at {time_words(last)}, {ago_words(symptoms.now_seconds - last)}"


def _of_allowance(allowance: Allowance) -> Iterator[Finding]:
    left = "" if allowance.available is None else f" {counted(allowance.available, 'connection')} still fit."
    if allowance.exceeded:
        now = f", {allowance.exceeded_now:,} just now" if allowance.exceeded_now else ""
        yield Finding(
            "critical" if allowance.exceeded_now or allowance.available == 0 else "warning",
            "EC2AllowanceExceeded",
            f"EC2's own table was full on {allowance.interface}: {counted(allowance.exceeded, 'packet')} dropped{now}.",
            f"conntrack_allowance_exceeded of the ena driver, since it started.{left} Security groups track connections"
            " outside this machine; no sysctl changes that.",
            "A larger instance, shorter idle timeouts of the network interface (connection tracking in EC2), or"
            " security group rules that need no tracking (all ports and addresses open both ways).",
        )
    elif allowance.available == 0:
        yield Finding(
            "critical",
            "EC2AllowanceUsedUp",
            f"EC2's own table is full on {allowance.interface}: no further connection fits.",
            "conntrack_allowance_available of the ena driver is 0.",
            "A larger instance, or shorter idle timeouts of the network interface (connection tracking in EC2).",
        )


def _of_maps(maps: tuple[PinnedMap, ...]) -> Iterator[Finding]:
    for pinned in maps:
        used = percent(pinned.entries or 0, pinned.max_entries or 0)
        if pinned.entries is not None and used >= HIGH_PERCENT:
            yield Finding(
                "critical" if used >= FULL_PERCENT else "warning",
                "CiliumMapFull",
                f"Cilium's own table is {used:.0f}% full: {pinned.name}, {pinned.entries:,} of {pinned.max_entries:,}.",
                "A BPF map, not the kernel's table. When it is full, new connections push out or lose to others.",
                "Raise bpf-ct-global-tcp-max, bpf-ct-global-any-max or bpf-map-dynamic-size-ratio in cilium-config.",
            )
    if maps:
        names = ", ".join(_map_words(pinned) for pinned in maps)
        yield Finding(
            "info",
            "CiliumTracks",
            "Cilium keeps connection tables of its own on this node; pods' traffic is mostly in those.",
            f"{names}.",
        )


def _map_words(pinned: PinnedMap) -> str:
    if pinned.max_entries is None:
        return f"{pinned.name} (fill level unknown)"
    entries = "unknown" if pinned.entries is None else f"{pinned.entries:,}"
    return f"{pinned.name} ({entries} of {pinned.max_entries:,})"


def _of_zone(zone: ZoneLimit) -> Iterator[Finding]:
    used = percent(zone.entries, zone.limit)
    if zone.limit and used >= HIGH_PERCENT:
        state = "full" if used >= 100 else f"{used:.0f}% full"
        yield Finding(
            "critical" if used >= FULL_PERCENT else "warning",
            "ZoneFull",
            f"Zone {zone.zone} of Open vSwitch is {state}: {zone.entries:,} of {zone.limit:,} entries.",
            "Open vSwitch limits this zone by itself, however much room the table has; OVN gives each port a zone.",
            f"Raise it: ovs-appctl dpctl/ct-set-limits zone={zone.zone},limit={2 * zone.limit}; or in OVN's settings.",
        )
