"""Rivals: who probably changed a setting of ours, by which key of its own, and how to make it stop. Pure.

The kernel does not say who writes a sysctl or deletes a table. What is configured on this machine says who would: a
writer of exactly the value that was found, else whoever writes that setting at all, else nobody that could be seen.
From a pod none of that is seen, and two signs are left: the value, and kube-proxy's rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conntrack_operator.model.catalogue import PREFIX

from .diagnosis_writers import OURS, removal_of
from .draft import BUCKETS, MAX
from .drift import Drift
from .kube_proxy import default_writers
from .symptoms import Writer

UNKNOWN = "somebody unknown"
UNKNOWN_KIND = "unknown"
BUCKETS_ROUNDING = 512
"""Buckets of a page, to which the kernel rounds up (tried: 512 on pages of 4 KiB)."""

Table = tuple[str, str]
"""Family and name of an nftables table."""


@dataclass(frozen=True)
class Hidden:
    """What is known of a machine whose files and processes are out of sight, as they are from a pod."""

    cpus: int
    kube_proxy: bool
    """Whether kube-proxy's rules are there. They outlive it: a sign that it runs, no proof."""


def likely_writer(setting: str, observed: int | str | None, writers: Sequence[Writer]) -> str:
    """Return who probably wrote `observed` to `setting`, with the key, in words; UNKNOWN when nobody is known to."""
    writer, exact = _suspect(setting, observed, writers)
    if writer is None:
        return UNKNOWN
    return f"{'likely' if exact else 'perhaps'} by {_described(writer)}"


def kind_of_rival(drift: Drift, writers: Sequence[Writer] = (), hidden: Hidden | None = None) -> str:
    """Return who is suspected of `drift`, as one of few words: a kind of writer, or "unknown".

    What is `hidden` must agree in both signs: one alone is worth a sentence, not a count.
    """
    writer, _ = _suspect(drift.setting, drift.observed, writers)
    if writer is None and hidden is not None and hidden.kube_proxy:
        guessed, exact = _suspect(drift.setting, drift.observed, default_writers(hidden.cpus))
        writer = guessed if exact else None
    return writer.kind if writer is not None else UNKNOWN_KIND


def sentence_for(drift: Drift, writers: Sequence[Writer] = (), rival: str = "", hidden: Hidden | None = None) -> str:
    """Return one sentence about `drift` for a status or an event: what, from, to, by whom, and the remedy.

    `rival` is what `likely_flusher` says, for our table; `hidden` is None where files and processes could be looked at.
    """
    name = drift.setting.removeprefix(PREFIX)
    if drift.setting.startswith("notrack/"):
        what = "our nftables table" if name == "notrack/*" else name
        return f'{what} was changed from "{drift.wanted}" to "{_observed(drift)}"; {rival or _FIND_TABLE}'
    changed = f"{name} was changed from {drift.wanted} to {_observed(drift)}"
    writer, exact = _suspect(drift.setting, drift.observed, writers)
    if writer is None:
        search = f"grep -rs {name} /etc /usr/lib/sysctl.d /run/sysctl.d"
        if hidden is None:
            return f"{changed} by {UNKNOWN}; find who writes it: {search}"
        return f"{changed}{_guess(drift, hidden, f'on the node look with conntrack-operator doctor, or {search}')}"
    sureness = "likely" if exact else "perhaps"
    return f"{changed}, {sureness} by {_described(writer)}; {_remedy(drift.setting, writer)}"


def _guess(drift: Drift, hidden: Hidden, look: str) -> str:
    """Return by whom, as far as the value and kube-proxy's rules tell, and what to do next."""
    writer, exact = _suspect(drift.setting, drift.observed, default_writers(hidden.cpus))
    if writer is None or drift.observed is None or not (exact or hidden.kube_proxy):
        return f" by {UNKNOWN}: a pod sees neither the node's /etc nor its processes; {look}"
    default = f"{_default(drift.setting, writer, hidden.cpus)} ({writer.key})"
    if exact and hidden.kube_proxy:
        return f", likely by kube-proxy: {default}; {_remedy(drift.setting, writer)}"
    doubt = f"{default}, but its rules are not seen here" if exact else f"its rules are here, but {default}"
    return f", perhaps by kube-proxy: {doubt}; {look}"


def _default(setting: str, writer: Writer, cpus: int) -> str:
    if writer.setting != MAX or writer.value is None:
        return f"its default is {writer.value}"
    machine = f"for {cpus} CPU{'s' * (cpus != 1)}"
    if setting == BUCKETS:
        return f"a quarter of its default max {machine} is {writer.value // 4}"
    return f"its default {machine} is {writer.value}"


_FIND_TABLE = "see who changes nftables: nft monitor"


def _observed(drift: Drift) -> str:
    return "nothing" if drift.observed is None else str(drift.observed)


def _suspect(setting: str, observed: int | str | None, writers: Sequence[Writer]) -> tuple[Writer | None, bool]:
    """Return the likeliest writer, and whether it writes just what was found. A later file wins, as at boot."""
    others = [writer for writer in writers if writer.kind != OURS and _concerns(writer, setting)]
    exact = [writer for writer in others if _writes(writer, setting) == observed and observed is not None]
    if setting == BUCKETS:
        exact += [writer for writer in others if writer not in exact and _is_quarter(writer, observed)]
    # A process that runs now is likelier than a file that is read at boot.
    ranked = sorted(exact or others, key=lambda writer: writer.kind == "kube-proxy")
    return (ranked[-1], bool(exact)) if ranked else (None, False)


def _concerns(writer: Writer, setting: str) -> bool:
    return writer.setting == setting or (setting == BUCKETS and writer.kind == "kube-proxy" and writer.setting == MAX)


def _writes(writer: Writer, setting: str) -> int | None:
    return writer.value if writer.setting == setting else None


def _is_quarter(writer: Writer, observed: int | str | None) -> bool:
    # kube-proxy grows the buckets to a quarter of its max (pkg/proxy/conntrack/sysctls.go, read).
    if writer.setting != MAX or writer.value is None or not isinstance(observed, int):
        return False
    return 0 <= observed - writer.value // 4 < BUCKETS_ROUNDING


def _described(writer: Writer) -> str:
    if writer.kind == "kube-proxy":
        return f"kube-proxy ({writer.key} in its ConfigMap or flags)"
    if writer.kind == "TuneD":
        return writer.where
    return f"{writer.kind} ({writer.where}{f', {writer.key}' if writer.key else ''})"


def _remedy(setting: str, writer: Writer) -> str:
    if writer.kind == "kube-proxy" and writer.setting == MAX:
        # maxPerCore 0 alone suffices today; older versions looked at min as well.
        return "set conntrack.maxPerCore: 0 and conntrack.min: 0 in kube-proxy's ConfigMap"
    return removal_of([writer]) if writer.setting == setting else f"look at {writer.where}"


def likely_flusher(
    before: Mapping[Table, int], after: Mapping[Table, int], ours: Table, configured: Sequence[str] = ()
) -> str:
    """Return what probably happened to our table, in words with the remedy.

    `before` and `after` are the handles of all tables: a table made anew under its old name has another one.
    `configured` are the places (file:line) where this machine has a `flush ruleset`.
    """
    if ours in after and after[ours] == before.get(ours):
        return f"rules or sets in it were edited; {_FIND_TABLE}"
    others = {table: handle for table, handle in before.items() if table != ours}
    survivors = [table for table, handle in others.items() if after.get(table) == handle]
    if others and len(survivors) == len(others):
        return f"it alone was deleted, the other tables were not; {_FIND_TABLE}"
    if survivors:
        gone = sorted(f"{family} {name}" for family, name in others.keys() - set(survivors))
        return f"it was deleted together with {_few(gone)}; {_FIND_TABLE}"
    if configured:
        return (
            f"the whole ruleset was flushed, likely by a reload of {_few(configured)}; delete that file's own tables"
            " there in place of flush ruleset"
        )
    return f"the whole ruleset was flushed (nft flush ruleset, or a firewall's reload); {_FIND_TABLE}"


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
