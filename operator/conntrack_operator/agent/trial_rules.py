"""The rules of a change on trial: loaded so that the kernel lets them expire, then made to last. With their accepts."""

import logging
from collections.abc import Callable

from conntrack_operator.decide.accepts import accept_mode
from conntrack_operator.decide.trial import EXPIRED, new_rules, rules_named, withdrawn_rules
from conntrack_operator.errors import ConntrackOperatorError, Refused, Unsupported
from conntrack_operator.kernel import accepts, flow_editing, nftables
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.journal import Journal
from conntrack_operator.model.notrack import Notrack

from .sight import Sight, confirmed_rules
from .writing import accepts_of, spare_entries, spare_flows

log = logging.getLogger(__name__)


class TrialRules:
    """What a trial does with rules. `touched` tells whether the change is about them or their accepts at all."""

    def __init__(self, roots: Roots, sight: Sight, notrack: Notrack | None) -> None:
        self._roots, self._plan, self._notrack = roots, sight.plan, notrack
        self.touched = bool(rules_named(sight.plan)) or sight.accepts_differ

    def tested(self, journal: Journal) -> Journal:
        """Return `journal` with the answer to whether this kernel can let rules expire, asked once a boot."""
        if not self.touched or journal.timed_elements is not None:
            return journal
        try:
            nftables.self_test()
        except Unsupported as error:
            log.warning("%s", error)
            return journal.model_copy(update={"timed_elements": False})
        return journal.model_copy(update={"timed_elements": True})

    def begin(self, journal: Journal, seconds_left: Callable[[], float]) -> None:
        """Load the rules, to expire in `seconds_left()`, beside those that are confirmed.

        Raises Unsupported where the kernel cannot let them expire, Refused (EXPIRED) when no time is left; also what
        accepts and nft raise. What was loaded before an error is taken away by the undoing of the trial.
        """
        if not journal.timed_elements:
            raise Unsupported(
                "timed elements of nftables sets do not expire on this kernel, so a trial of rules could not end by"
                " itself; use a newer kernel, or settings without notrack"
            )
        before, added = confirmed_rules(journal), new_rules(self._plan, journal)
        # Accepts for both, as both are in force; they match nothing but what rules leave untracked.
        both = {f"{rule.name} {rule.model_dump_json()}": rule for rule in (*before, *self._plan.rules)}
        accepts.write_accepts(accepts_of(list(both.values()), accept_mode(self._notrack)))
        # The entries of flows that are tracked now fall behind, and must live on if the rules go again.
        flow_editing.make_liberal(added)
        left = seconds_left()
        if left <= 0:
            raise Refused(EXPIRED, "the time for the trial was over before its rules could be loaded")
        nftables.begin_trial(before, self._plan.rules, left)
        # Reading a large table takes seconds, in which connections came about. The rules are in: no error any more.
        spare_entries(added)

    def spare_new_flows(self, journal: Journal, at_most_seconds: int) -> None:
        """Give connections that came about in the trial entries, in case the rules expire with nobody to do it then."""
        spare_flows(self._roots, new_rules(self._plan, journal), at_most_seconds)

    def confirm(self, journal: Journal) -> None:
        """Make the rules last, in one transaction that the kernel refuses once they have expired."""
        spare_flows(self._roots, withdrawn_rules(journal, self._plan.rules))
        nftables.confirm_trial(confirmed_rules(journal), self._plan.rules)

    def tidy(self, journal: Journal) -> None:
        """Take away what the confirmed rules leave behind; what cannot be taken away harms nobody."""
        try:
            accepts.write_accepts(accepts_of(self._plan.rules, accept_mode(self._notrack)))
        except ConntrackOperatorError as error:
            log.warning("%s; accepts of rules that are gone stay for now, and match nothing", error)
        rules = new_rules(self._plan, journal)
        if self._notrack is not None and self._notrack.drop_existing is not False and rules:
            try:
                flow_editing.drop_stale(rules)
            except ConntrackOperatorError as error:
                log.warning("%s; entries that no packet reaches any more stay until they time out", error)
