"""What became of a plan: one result a setting, from what was read back, and the phase they add up to. Pure."""

from collections.abc import Mapping
from typing import Literal

from conntrack_operator.errors import ConntrackOperatorError, Refused
from conntrack_operator.model.catalogue import PREFIX
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.node import Phase, Result

from . import notrack
from .plan import Plan, TableState
from .tracking import SETTING as TRACKING

APPLIED = "Applied"
NODE = "node"
"""The setting of a result that is about the node as a whole."""


def results_for(
    plan: Plan, facts: Facts, table: TableState, failed: Mapping[str, ConntrackOperatorError]
) -> tuple[Result, ...]:
    """Return a result for every wanted setting and every refusal.

    `facts` and `table` were read after the writes; `failed` holds the errors of the writes, by setting.
    """
    results = [_value_result(name, value, facts, failed) for name, value in plan.wanted.items()]
    missing = set(notrack.ruleset_for(plan.rules).missing_from(table.installed))
    for rule in plan.rules:
        wanted, setting = notrack.description_of(rule), f"notrack/{rule.name}"
        if rule.name in missing:
            results.append(_failure(setting, wanted, "absent", failed.get(setting) or failed.get("notrack/*")))
        else:
            results.append(Result(setting=setting, wanted=wanted, observed=wanted, reason=APPLIED))
    results.extend(
        Result(setting=refusal.setting, wanted="", observed="", reason=refusal.reason, message=refusal.message)
        for refusal in plan.refused
    )
    if plan.off is not None:
        results.append(plan.off.result(failed.get(TRACKING)))
    named = {result.setting for result in results}
    results.extend(_failure(setting, "", "", error) for setting, error in failed.items() if setting not in named)
    return tuple(results)


def of_node(reason: str, message: str) -> Result:
    """Return a result that is about the node as a whole."""
    return Result(setting=NODE, wanted="", observed="", reason=reason, message=message)


def in_words(setting: str, message: str) -> str:
    """Return what is said of `setting`, which is named unless the message does so, or is about the node as a whole."""
    if not message:
        return setting
    named = setting == NODE or message.startswith((setting, setting.removeprefix(PREFIX)))
    return message if named else f"{setting}: {message}"


def phase_of(results: tuple[Result, ...], mode: Literal["Apply", "Restore"]) -> Phase:
    """Return the phase a node is in when its settings came out as `results`."""
    if any(result.reason != APPLIED for result in results):
        return "Refused"
    return "Current" if mode == "Apply" else "Restored"


def _value_result(name: str, value: int, facts: Facts, failed: Mapping[str, ConntrackOperatorError]) -> Result:
    observed = facts.sysctls.get(name)
    if observed == value:
        return Result(setting=name, wanted=str(value), observed=str(observed), reason=APPLIED)
    return _failure(name, str(value), str(observed), failed.get(name))


def _failure(setting: str, wanted: str, observed: str, error: ConntrackOperatorError | None) -> Result:
    if error is None:
        reason, message = "ReadBackDiffers", "the kernel shows another value than was written; somebody else writes it"
    else:
        reason, message = error.reason if isinstance(error, Refused) else "WriteFailed", str(error)
    return Result(setting=setting, wanted=wanted, observed=observed, reason=reason, message=message)
