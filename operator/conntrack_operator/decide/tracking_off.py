"""`tracking: Disabled` where nobody needs tracking: what is shown, what is unloaded, and how it is undone. Pure.

Nothing is tracked from the moment the last rule that asked for it went. What is left is the module's code: unloaded
where it is a module and this process may, else said.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from conntrack_operator.model import catalogue
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Journal, Original
from conntrack_operator.model.node import Result
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import LoadedModule, Surroundings, TrackingState

from .refusal import Refusal
from .tracking import SETTING, blockers_of, refusals_for

CONNTRACK = "nf_conntrack"
POINTLESS = "TrackingDisabled"
_FIELDS = ("table", "timeouts", "tcp", "sysctls")


@dataclass(frozen=True)
class Off:
    """Nobody needs tracking: what that comes to on this machine."""

    observed: str
    """In words for the status."""
    loaded: bool = True
    """Whether nf_conntrack, and with it the sysctls, is there when all is done."""
    unload: tuple[str, ...] = ()
    """Modules to unload, in this order; the last is nf_conntrack."""

    def result(self, failed: Exception | None = None) -> Result:
        """Return what the status says. `failed` is why unloading did not work; nothing is tracked all the same."""
        observed = self.observed
        if self.unload:
            observed += "; nf_conntrack was unloaded" if failed is None else f"; nf_conntrack stays loaded: {failed}"
        return Result(setting=SETTING, wanted="Disabled", observed=observed, reason="Applied")


def judged(settings: Settings, facts: Facts, surroundings: Surroundings | None) -> tuple[Off | None, list[Refusal]]:
    """Return what `tracking: Disabled` comes to, or why it is refused; (None, []) when it is not asked for."""
    if settings.tracking != "Disabled":
        return None, []
    if surroundings is None:
        if not facts.sysctls:
            return off_for(TrackingState(presence="absent")), []
        message = "who needs tracking can be seen on the node itself only; run plan there, without --facts"
        return None, [Refusal(SETTING, "Unsupported", message)]
    blockers = blockers_of(surroundings, facts)
    return (None, refusals_for(blockers)) if blockers else (off_for(surroundings.tracking), [])


def off_for(tracking: TrackingState) -> Off:
    """Return what is left to do, and to say, where `tracking.blockers_of` found nobody."""
    if tracking.presence == "absent":
        return Off("nothing is tracked; nf_conntrack is not loaded", loaded=False)
    proof = "nothing is tracked" if tracking.families is not None else "nothing here asks for tracking"
    if tracking.presence == "built in":
        return Off(f"{proof}; nf_conntrack is built into this kernel, so nothing can be unloaded")
    order, held_by = unloading(tracking.modules)
    if held_by or not order:
        names = ", ".join(name for name in held_by if name != CONNTRACK) or "a program"
        return Off(f"{proof}; nf_conntrack stays loaded, held by {names} (in other network namespaces, perhaps)")
    if not tracking.may_unload:
        return Off(f"{proof}; nf_conntrack stays loaded, as the agent may not unload modules (agent.privileged)")
    return Off(proof, loaded=False, unload=order)


def unloading(modules: Iterable[LoadedModule]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules to unload, users first, or else those that somebody holds.

    Either nf_conntrack is the last of the first and the second is empty, or nothing is to be unloaded.
    """
    left = {module.name: module for module in modules}
    order: list[str] = []
    while left:
        # A user that is a module is one reference; what remains are rules and sockets of any network namespace.
        free = sorted(
            name
            for name, module in left.items()
            if module.references <= len(module.users) and not any(user in left for user in module.users)
        )
        if not free:
            return (), tuple(sorted(name for name, held in left.items() if held.references > len(held.users)) or left)
        order.extend(free)
        for name in free:
            del left[name]
    return tuple(order), ()


def settings_while_off(settings: Settings, off: Off) -> Settings:
    """Return `settings` without what makes no sense while nothing is tracked.

    NOTRACK rules: what they ask for holds already, and a `notrack` rule would hold the module. Sizes and timeouts stay
    where the kernel has them, so that they are in force the moment somebody switches tracking on.
    """
    dropped: dict[str, None] = {"notrack": None}
    if not off.loaded:
        dropped.update(dict.fromkeys(_FIELDS))
    return settings.model_copy(update=dropped)


def warnings_while_off(settings: Settings, off: Off) -> Iterator[Refusal]:
    """Yield one warning for each field that does nothing while tracking is off."""
    for rule in (settings.notrack and settings.notrack.rules) or ():
        message = (
            "nothing is tracked with tracking: Disabled, so this rule is not installed; remove it, or write tracking:"
            " Enabled"
        )
        yield Refusal(f"notrack/{rule.name}", POINTLESS, message)
    for field in _FIELDS:
        if getattr(settings, field) is not None:
            when = "works only once tracking is on again" if off.loaded else "cannot be set while the module is away"
            message = (
                f"nothing is tracked with tracking: Disabled, so {field} {when}; remove it, or write tracking: Enabled"
            )
            yield Refusal(field, POINTLESS, message)


def journal_before_unloading(journal: Journal, facts: Facts, modules: Iterable[str]) -> Journal:
    """Return the journal to sync before `modules` are unloaded: every writable sysctl's value goes with them."""
    originals = dict(journal.originals)
    for name, value in facts.sysctls.items():
        entry = catalogue.BY_NAME.get(name.removeprefix(catalogue.PREFIX))
        if entry is not None and entry.writable and name not in originals:
            originals[name] = Original(value=value, ours=[value])
    unloaded = list(dict.fromkeys([*journal.unloaded, *modules]))
    return journal.model_copy(update={"originals": originals, "unloaded": unloaded})


def journal_after_loading(journal: Journal, facts: Facts) -> Journal:
    """Return the journal once nf_conntrack is loaded again: a fresh module's values count as ours.

    So a plan puts back what the values were before it was unloaded, unless a policy wants something else.
    """
    originals = {
        name: original.model_copy(update={"ours": [*original.ours, facts.sysctls[name]]})
        if name in facts.sysctls and facts.sysctls[name] not in original.ours
        else original
        for name, original in journal.originals.items()
    }
    return journal.model_copy(update={"originals": originals, "unloaded": []})
