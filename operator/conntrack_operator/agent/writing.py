"""What is written to a kernel, piece by piece: sysctls, NOTRACK rules, accepts beside them, and the care for flows.

In which order, and what the journal says meanwhile, is `agent.machine`'s and `agent.trial`'s.
"""

import logging
from collections.abc import Iterable, Sequence

from conntrack_operator.decide.accepts import Accepts, AcceptUntracked, accepts_for
from conntrack_operator.decide.intervals import merged, port_intervals
from conntrack_operator.decide.plan import Change
from conntrack_operator.decide.tracking import SETTING as TRACKING
from conntrack_operator.errors import ConntrackOperatorError, Retry
from conntrack_operator.kernel import accepts, flow_editing, nftables
from conntrack_operator.kernel.firewall import read_firewall
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.sysctl import write_sysctl
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.surroundings import Firewall

log = logging.getLogger(__name__)

Failed = dict[str, ConntrackOperatorError]
"""Errors of writes, by setting."""


def write_sysctls(roots: Roots, changes: Iterable[Change]) -> Failed:
    """Write the sysctls among `changes`, one by one and in their order; return what failed."""
    failed: Failed = {}
    for change in changes:
        if change.setting != TRACKING and not change.setting.startswith("notrack/"):
            try:
                write_sysctl(roots, change.setting, int(change.to))
            except ConntrackOperatorError as error:
                failed[change.setting] = error
    return failed


def write_rules(
    roots: Roots,
    rules: Sequence[NotrackRule],
    withdrawn: Sequence[NotrackRule],
    beside: Accepts | None,
    added: Sequence[NotrackRule] = (),
) -> ConntrackOperatorError | None:
    """Make `rules` the lasting ones, and `beside` what stands in firewalls for them.

    Flows of the `withdrawn` rules are made known to the table first, those of the `added` ones liberal. Accepts
    match nothing but what rules leave untracked: they go in before what is added, and out after the rest. Returns
    the error when it failed.
    """
    spare_flows(roots, withdrawn)
    try:
        if beside is not None and added:
            accepts.write_accepts(beside)
        spare_entries(added)
        nftables.write_rules(rules)
        spare_entries(added)
        if beside is not None and not added:
            accepts.write_accepts(beside)
    except ConntrackOperatorError as error:
        return error
    return None


def spare_flows(roots: Roots, withdrawn: Sequence[NotrackRule], at_most_seconds: int | None = None) -> None:
    """Make flows that `withdrawn` rules let by known to the table, as well as it goes.

    A rule that cuts something off, or that nobody wants any more, must not stay because of connections that break.
    """
    try:
        if withdrawn:
            flow_editing.seed(withdrawn, at_most_seconds, roots)
    except ConntrackOperatorError as error:
        log.warning("%s; connections that the rules let by may break when the rules go", error)


def spare_entries(added: Sequence[NotrackRule]) -> None:
    """Let entries of flows that `added` rules match take those flows up again one day, as well as it goes."""
    try:
        if added:
            flow_editing.make_liberal(added)
    except ConntrackOperatorError as error:
        log.warning("%s; connections that are tracked now may break if the rules go again", error)


def accepts_of(rules: Sequence[NotrackRule], mode: AcceptUntracked) -> Accepts:
    """Return what has to stand in the firewalls, as they are now, for `rules`.

    Raises Retry when they cannot be read: half a firewall tells half of the accepts.
    """
    ports = merged(interval for rule in rules for interval in port_intervals(rule.ports or ()))
    firewall = read_firewall(ports) if rules else Firewall()
    if firewall.problems:
        raise Retry("; ".join(sentence for _, sentence in firewall.problems))
    return accepts_for(rules, mode, firewall)
