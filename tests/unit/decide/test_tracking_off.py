"""`tracking: Disabled` where nobody needs tracking: what is said, unloaded, left out and put back."""

import pytest

from conntrack_operator.decide.plan import plan_for
from conntrack_operator.decide.tracking_off import (
    journal_after_loading,
    journal_before_unloading,
    off_for,
    unloading,
)
from conntrack_operator.errors import Refused
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.journal import Journal, Original
from conntrack_operator.model.policy import Settings
from conntrack_operator.model.surroundings import LoadedModule, Surroundings, TrackingState

STREAM = "net.netfilter.nf_conntrack_udp_timeout_stream"
COUNT = "net.netfilter.nf_conntrack_count"
WISH = {
    "tracking": "Disabled",
    "timeouts": {"udp": {"stream": 60}},
    "notrack": {"rules": [{"name": "web", "ports": [80]}]},
}
ALONE = (LoadedModule("nf_conntrack", 0),)


def plan(document=WISH, sysctls=None, journal=None, **tracking):
    """Return the plan of a machine whose tracking is as told."""
    state = TrackingState(families=frozenset(), **tracking)
    facts = Facts(memory_bytes=1 << 30, cpus=1, kernel="6.18", sysctls={STREAM: 120} if sysctls is None else sysctls)
    return plan_for(
        Settings.model_validate(document), facts, journal=journal, surroundings=Surroundings(tracking=state)
    )


UNLOADING = {
    "alone": (ALONE, (("nf_conntrack",), ())),
    "a chain of users": (
        (
            LoadedModule("nf_conntrack", 2, ("nf_nat", "xt_conntrack")),
            LoadedModule("nf_nat", 1, ("xt_MASQUERADE",)),
            LoadedModule("xt_conntrack", 0),
            LoadedModule("xt_MASQUERADE", 0),
        ),
        (("xt_MASQUERADE", "xt_conntrack", "nf_nat", "nf_conntrack"), ()),
    ),
    "a rule of another namespace": (
        (LoadedModule("nf_conntrack", 1, ("nft_ct",)), LoadedModule("nft_ct", 4)),
        ((), ("nft_ct",)),
    ),
    "a socket": ((LoadedModule("nf_conntrack", 1),), ((), ("nf_conntrack",))),
    "no modules": ((), ((), ())),
}


@pytest.mark.parametrize(("modules", "expected"), UNLOADING.values(), ids=UNLOADING)
def test_unloading_order(modules, expected):
    """Users go before what they use; one that is held keeps everything loaded and is named."""
    assert unloading(modules) == expected


SAID = {
    "built in": ({}, "nothing is tracked; nf_conntrack is built into this kernel, so nothing can be unloaded"),
    "absent": ({"presence": "absent"}, "nothing is tracked; nf_conntrack is not loaded"),
    "may not": (
        {"presence": "loaded", "modules": ALONE},
        "nothing is tracked; nf_conntrack stays loaded, as the agent may not unload modules (agent.privileged)",
    ),
    "held": (
        {"presence": "loaded", "modules": (LoadedModule("nf_conntrack", 2),), "may_unload": True},
        "nothing is tracked; nf_conntrack stays loaded, held by a program (in other network namespaces, perhaps)",
    ),
    "unloaded": (
        {"presence": "loaded", "modules": ALONE, "may_unload": True},
        "nothing is tracked; nf_conntrack was unloaded",
    ),
}


@pytest.mark.parametrize(("tracking", "words"), SAID.values(), ids=SAID)
def test_what_the_status_says(tracking, words):
    """It says that nothing is tracked, and what became of the module and why."""
    result = off_for(TrackingState(families=frozenset(), **tracking)).result()
    assert (result.setting, result.wanted, result.observed, result.reason) == ("tracking", "Disabled", words, "Applied")


def test_unproven_is_said_so():
    """Without the proof of a connection the words promise less."""
    assert off_for(TrackingState()).observed.startswith("nothing here asks for tracking; ")


def test_failed_unloading_is_no_failure():
    """Nothing is tracked all the same; why the module stays is said."""
    off = off_for(TrackingState(presence="loaded", families=frozenset(), modules=ALONE, may_unload=True))
    result = off.result(Refused("ModuleInUse", "nf_conntrack cannot be unloaded"))
    assert result.reason == "Applied"
    assert result.observed == "nothing is tracked; nf_conntrack stays loaded: nf_conntrack cannot be unloaded"


def test_other_fields_while_built_in():
    """Values are written and wait; rules are not installed; each is warned of with what to do."""
    made = plan()
    assert [change.setting for change in made.changes] == [STREAM]
    assert (made.rules, made.refused) == ((), ())
    assert [(warned.setting, warned.reason) for warned in made.warnings] == [
        ("notrack/web", "TrackingDisabled"),
        ("timeouts", "TrackingDisabled"),
    ]
    assert all("tracking: Enabled" in warned.message for warned in made.warnings)


def test_other_fields_while_unloading():
    """Values would go with the module, so none is written; unloading is the only change, and the last."""
    made = plan(presence="loaded", modules=ALONE, may_unload=True)
    assert [(change.setting, change.to) for change in made.changes] == [("tracking", "unloaded: nf_conntrack")]
    assert made.wanted == {}


def test_absent_keeps_the_journal():
    """While the module is away nothing is released: what the values were is needed when it is back."""
    journal = Journal(boot_id="b", originals={STREAM: Original(value=120, ours=[60])}, unloaded=["nf_conntrack"])
    made = plan(sysctls={}, journal=journal, presence="absent")
    assert (made.changes, made.released, made.refused) == ((), (), ())


def test_a_plan_for_another_machine():
    """Facts alone do not tell who needs tracking; without any sysctl there is nothing to tell."""
    settings = Settings.model_validate({"tracking": "Disabled"})
    facts = Facts(memory_bytes=1 << 30, cpus=1, kernel="6.18", sysctls={STREAM: 120})
    (refusal,) = plan_for(settings, facts).refused
    assert (refusal.setting, refusal.reason) == ("tracking", "Unsupported")
    assert "without --facts" in refusal.message
    assert plan_for(settings, facts.model_copy(update={"sysctls": {}})).refused == ()


def test_there_and_back():
    """Values of before the unloading come back with the module, whatever the fresh module has; ours do not."""
    max_ = "net.netfilter.nf_conntrack_max"
    before = Facts(memory_bytes=1 << 30, cpus=1, kernel="6.18", sysctls={STREAM: 60, max_: 500_000, COUNT: 3})
    journal = Journal(boot_id="b", originals={STREAM: Original(value=77, ours=[60])})
    away = journal_before_unloading(journal, before, ("nft_ct", "nf_conntrack"))
    assert away.unloaded == ["nft_ct", "nf_conntrack"]
    assert set(away.originals) == {STREAM, max_}
    again = before.model_copy(update={"sysctls": {STREAM: 120, max_: 262_144, COUNT: 0}})
    back = journal_after_loading(away, again)
    assert back.unloaded == []
    made = plan_for(Settings(), again, journal=back)
    assert {(change.setting, change.from_, change.to) for change in made.changes} == {
        (STREAM, 120, 77),
        (max_, 262_144, 500_000),
    }
