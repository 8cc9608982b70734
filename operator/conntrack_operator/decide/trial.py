"""How a change is tried: when its probes run, when it may be kept, when it is undone, and when to try it again. Pure.

A trial has a deadline; by then the kernel itself lets NOTRACK rules on trial expire. So everything is timed backwards
from it: a confirmation may begin `confirm_seconds` before it and never later, and a round of probes is begun only when
it must be over by then, whatever the probes do. The schedule is a function of the settings alone, and the tests prove
for every pair of them that are allowed that no round and no confirmation can outlast the deadline.

Times here are seconds since the trial began.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Confirmed, Failures, Journal, TrialRecord
from conntrack_operator.model.notrack import NotrackRule
from conntrack_operator.model.policy import SOAK_SECONDS, TRIAL_MARGIN_SECONDS, TRIAL_SECONDS, Trial

from .plan import BUCKETS, MAX, Change, Plan, ordered
from .tracking import SETTING as TRACKING

PROBE_SECONDS = 2.0
"""The longest a round of probes takes: all run side by side, and whatever has not answered by then has failed."""
BEFORE_SECONDS = 1.0
"""The same before the change, which waits for it: what answers within that has time to spare afterwards."""
PAUSE_SECONDS = 1.0
"""Between two rounds, so that a trial of an hour is not a load on what it asks."""
CONFIRM_SECONDS = 5.0
"""Kept free before the deadline for the confirmation: one nft transaction and one synced file."""
FAILURES_MAX = 3
"""So often one wish may fail; then it is parked until there is a new one, or a new attempt (rollout.retry)."""
RETRY_PAUSES = (30.0, 60.0)
"""Seconds before the second and the third try."""

PROBE_FAILED = "ProbeFailed"
EXPIRED = "TrialExpired"
AGENT_KILLED, AGENT_FAILED, NODE_REBOOTED = "AgentKilled", "AgentFailed", "NodeRebooted"
ABORTED = "Aborted"
CONFIRM_FAILED, STATE_UNWRITABLE = "ConfirmFailed", "StateUnwritable"
ROLLED_BACK_BY = frozenset(
    {PROBE_FAILED, EXPIRED, AGENT_KILLED, AGENT_FAILED, NODE_REBOOTED, CONFIRM_FAILED, STATE_UNWRITABLE, ABORTED}
)
"""Reasons for which a change is taken back."""


@dataclass(frozen=True)
class Budget:
    """The time of one trial: `timeout_seconds` from its beginning to its deadline."""

    timeout_seconds: float
    soak_seconds: float

    @property
    def last_confirm(self) -> float:
        """The last moment at which a confirmation may begin."""
        return self.timeout_seconds - min(CONFIRM_SECONDS, self.timeout_seconds / 5)

    @property
    def last_round(self) -> float:
        """The last moment at which a round of probes may begin."""
        return self.last_confirm - PROBE_SECONDS


def budget_for(trial: Trial | None) -> Budget:
    """Return the time that `spec.trial` gives; absent fields have their defaults, a default soak gives way."""
    timeout = trial.timeout_seconds if trial and trial.timeout_seconds is not None else TRIAL_SECONDS
    soak = trial.soak_seconds if trial else None
    return Budget(timeout, min(SOAK_SECONDS, timeout - TRIAL_MARGIN_SECONDS) if soak is None else soak)


@dataclass(frozen=True)
class Round:
    """One run of all the probes that must pass, and which of them did not."""

    began: float
    ended: float
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wait:
    """Nothing is decided yet; run the probes again at `next_round`."""

    next_round: float


@dataclass(frozen=True)
class Confirm:
    """Every probe has passed all through the soak: keep the change."""


@dataclass(frozen=True)
class Undo:
    """The change goes back: `reason` in CamelCase as a condition has it, `message` for people."""

    reason: str
    message: str


Decision = Wait | Confirm | Undo


def verdict(budget: Budget, required: Collection[str], rounds: Sequence[Round], now: float) -> Decision:
    """Return what to do at `now`, after `rounds`, with the probes in `required` that passed before the change.

    A probe that fails does not end the trial: it must pass again, and keep passing for the soak, while there is time.
    With nothing to probe there is nothing to wait for.
    """
    if now > budget.last_confirm:
        return _undo(budget, rounds, now)
    if not required:
        return Confirm()
    passed = _passed_last(rounds)
    if passed and passed[-1].ended - passed[0].began >= budget.soak_seconds:
        return Confirm()
    soonest = rounds[-1].ended + PAUSE_SECONDS if rounds else now
    soaked = (passed[0].began if passed else max(now, soonest)) + budget.soak_seconds
    if max(now, soaked) > budget.last_round:
        return _undo(budget, rounds, now)
    # The round that ends the soak is not put off by the pause.
    return Wait(max(rounds[-1].ended, min(soonest, soaked)) if rounds and passed else max(now, soonest))


def _passed_last(rounds: Sequence[Round]) -> Sequence[Round]:
    """Return the rounds since the last one in which a probe failed."""
    first = next((index for index in range(len(rounds), 0, -1) if rounds[index - 1].failed), 0)
    return rounds[first:]


def _undo(budget: Budget, rounds: Sequence[Round], now: float) -> Undo:
    bad = next((each for each in reversed(rounds) if each.failed), None)
    if bad is None:
        return Undo(
            EXPIRED,
            f"the change could not be confirmed within {budget.timeout_seconds:.0f} s ({now:.0f} s were gone); nothing"
            " failed, so give trial.timeoutSeconds more, or find out what held the agent up",
        )
    names = " and ".join(sorted(bad.failed))
    steadily = "" if bad is rounds[-1] else " steadily"
    return Undo(
        PROBE_FAILED,
        f"{names} answered before the change and did not{steadily} within {now:.0f} s after it; change what cuts it"
        " off, or give trial.timeoutSeconds more if it only needs longer",
    )


def needs_trial(plan: Plan, confirmed: Confirmed | None) -> bool:
    """Tell whether `plan` does anything that was not confirmed on this node before.

    Putting an original back, withdrawing a rule, and repairing what somebody else undid are known to be good, and
    should neither wait for probes nor be taken back because of them.
    """
    return bool(plan.changes) and known_part(plan, confirmed).changes != plan.changes


def known_part(plan: Plan, confirmed: Confirmed | None) -> Plan:
    """Return `plan` with what was confirmed before alone: what may be done without a trial."""
    rules = list(confirmed.rules) if confirmed else []
    sysctls = confirmed.sysctls if confirmed else {}
    kept = tuple(rule for rule in plan.rules if rule in rules)
    names = {rule.name for rule in plan.rules} - {rule.name for rule in kept}

    def is_known(change: Change) -> bool:
        if change.setting.startswith("notrack/"):
            # Of our own table as a whole (notrack/*): known when every rule in it is.
            return change.setting.removeprefix("notrack/") not in (names | ({"*"} if names else set()))
        # Unloading a module that nobody uses changes nothing for any packet.
        return change.setting == TRACKING or change.setting in plan.released or sysctls.get(change.setting) == change.to

    return replace(plan, changes=tuple(change for change in plan.changes if is_known(change)), rules=kept)


@dataclass(frozen=True)
class Undoing:
    """What an undo must write, in this order, and what it leaves because somebody else wrote it meanwhile."""

    changes: tuple[Change, ...]
    left: tuple[str, ...] = ()


def undoing(record: TrialRecord, facts: Facts) -> Undoing:
    """Return how the sysctls of a trial go back: compare and swap, so that nobody else's value is written over."""
    changes, left = [], []
    for name, before in record.before.items():
        now, written = facts.sysctls.get(name), record.written[name]
        if now is None or now == before:
            continue
        if now != written:
            left.append(f"{name} is {now} by somebody else and stays so")
        elif name == MAX and before < facts.entries:
            left.append(
                f"{name} stays at {now}, since {facts.entries} entries are in use and {before} would drop connections"
            )
        else:
            changes.append(Change(name, now, before, "value before the trial"))
    if any(line.startswith(MAX) for line in left):
        # Few buckets under many entries are slow; they go back together.
        changes = [change for change in changes if change.setting != BUCKETS]
    return Undoing(tuple(ordered(changes)), tuple(left))


@dataclass(frozen=True)
class Wishing:
    """Which wish, as failures are counted: a new revision and a new attempt each begin at none."""

    revision: str
    attempt: str = ""


def failed_again(journal: Journal, wish: Wishing, at: float, reason: str, message: str) -> Failures:
    """Return the count of failures after `wish` failed once more, at `at` on CLOCK_BOOTTIME."""
    known = journal.failures
    count = known.count + 1 if known and has_failed(known, wish) else 1
    return Failures(
        revision=wish.revision, attempt=wish.attempt, count=count, at=at, reason=reason, message=message[:1024]
    )


def has_failed(failures: Failures | None, wish: Wishing) -> bool:
    """Tell whether `wish` is the one that failed."""
    return failures is not None and (failures.revision, failures.attempt) == (wish.revision, wish.attempt)


def seconds_to_next_try(failures: Failures | None, wish: Wishing, now: float) -> float | None:
    """Return how long to wait before `wish` may be tried, 0 for at once, None when it is parked.

    `now` is on CLOCK_BOOTTIME.
    """
    if failures is None or not has_failed(failures, wish):
        return 0.0
    if failures.count >= FAILURES_MAX:
        return None
    return max(0.0, failures.at + RETRY_PAUSES[failures.count - 1] - now)


def why_not_now(failures: Failures, seconds: float | None) -> str:
    """Return the sentence for a node that rolled back: what failed, and what happens next."""
    if seconds is None:
        return (
            f"{failures.message}; it failed {failures.count} times and is not tried again until the policy changes or"
            " rollout.retry has a new text"
        )
    return f"{failures.message}; failure {failures.count} of {FAILURES_MAX}, it will be tried again"


def why_again(failures: Failures) -> str:
    """Return the sentence for a node in a trial of what failed before."""
    return f"{failures.message}; now it is tried again, {failures.count + 1} of {FAILURES_MAX} times"


def rules_named(plan: Plan) -> frozenset[str]:
    """Return the settings of `plan` that are about NOTRACK rules."""
    return frozenset(change.setting for change in plan.changes if change.setting.startswith("notrack/"))


def new_rules(plan: Plan, journal: Journal) -> list[NotrackRule]:
    """Return the rules of `plan` that are not confirmed as they are: flows that are tracked now will not be."""
    confirmed = [applied.rule for applied in journal.applied_rules.values()]
    return [rule for rule in plan.rules if rule not in confirmed]


def withdrawn_rules(journal: Journal, wanted: Sequence[NotrackRule]) -> list[NotrackRule]:
    """Return the confirmed rules that are not `wanted` as they are: flows they let by will meet tracking."""
    return [applied.rule for applied in journal.applied_rules.values() if applied.rule not in wanted]
