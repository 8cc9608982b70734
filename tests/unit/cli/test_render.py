"""What people see, as golden text at 80 columns: no line is longer, and no word is cut off."""

import pytest

from conntrack_operator.cli.render import outcome_view, plan_view
from conntrack_operator.cli.terminal import plain
from conntrack_operator.decide.merge import Conflict
from conntrack_operator.decide.plan import Change, Plan
from conntrack_operator.decide.refusal import Refusal
from conntrack_operator.model.facts import Facts
from conntrack_operator.model.node import Result

MAX = "net.netfilter.nf_conntrack_max"
ESTABLISHED = "net.netfilter.nf_conntrack_tcp_timeout_established"
CHANGES = (
    Change(MAX, 262144, 1914886, "table.size.memory: 2% of 23.5 GiB"),
    Change(ESTABLISHED, 432000, 86400, "timeouts.tcp.established"),
    Change("notrack/web", "absent", "TCP 80,8000-8100 Server, peers 10.0.0.0/8", "notrack.rules"),
)
REFUSED = (Refusal("trial", "Unsupported", "this version makes changes without a trial; remove trial"),)


def facts(**sysctls: int) -> Facts:
    """Return facts that matter to an outcome: the sysctls as read back."""
    return Facts(memory_bytes=1 << 30, cpus=1, kernel="6.18", sysctls=sysctls)


def result(setting: str, reason: str = "Applied", message: str = "") -> Result:
    """Return one result."""
    return Result(setting=setting, wanted="1", observed="1", reason=reason, message=message)


PLAN = """\
SYSCTL net.netfilter.*                   NOW   WANTED  WHY
────────────────────────────────────────────────────────────────────────────────
nf_conntrack_max                      262144  1914886  table.size.memory: 2% of
                                                       23.5 GiB
nf_conntrack_tcp_timeout_established  432000    86400  timeouts.tcp.established

NOTRACK RULE  NOW     WANTED
───────────────────────────────────────────────────────────────
web           absent  TCP 80,8000-8100 Server, peers 10.0.0.0/8

3 changes.

refused  trial  Unsupported
  this version makes changes without a trial; remove trial

policy low: table.size: policy high comes first
"""

OUTCOME = """\
SYSCTL net.netfilter.*                BEFORE      NOW  RESULT
────────────────────────────────────────────────────────────────────────────
nf_conntrack_max                      262144  1914886  failed, see below
nf_conntrack_tcp_timeout_established  432000    86400  not so: it reads 7200

NOTRACK RULE  BEFORE  NOW                                        RESULT
───────────────────────────────────────────────────────────────────────
web           absent  TCP 80,8000-8100 Server, peers 10.0.0.0/8  done

3 changes.

1 setting was right already.

refused  net.netfilter.nf_conntrack_max  WriteFailed
  the kernel refused 1914886 (out of memory); ask for less
"""


def test_plan() -> None:
    """Sysctls, rules, refusals with their remedy, and who lost what to whom."""
    plan = Plan(changes=CHANGES, refused=REFUSED, wanted={}, rules=())
    assert plain(plan_view(plan, [Conflict("low", "table.size", "high")]), 80) == PLAN


def test_a_plan_in_a_pipe_has_one_line_a_row() -> None:
    """However long the reason: grep and awk work on it."""
    plan = Plan(changes=CHANGES, refused=REFUSED, wanted={}, rules=())
    text = plain(plan_view(plan), 1000)
    assert "nf_conntrack_max                      262144  1914886  table.size.memory: 2% of 23.5 GiB\n" in text
    assert not any(line.endswith(" ") for line in text.splitlines())


WARNING = """\
Nothing to change: the machine is as it should be.

warning  net.netfilter.nf_conntrack_tcp_timeout_established  BelowKeepalive
  tcp_timeout_established is 10m; use 24h
"""


def test_warnings_are_told_but_are_no_refusals() -> None:
    """Below what is refused, in yellow, in plans and outcomes alike."""
    odd = Refusal(ESTABLISHED, "BelowKeepalive", "tcp_timeout_established is 10m; use 24h")
    plan = Plan(changes=(), refused=(), wanted={}, rules=(), warnings=(odd,))
    assert plain(plan_view(plan), 80) == WARNING
    outcome = plain(outcome_view((), (), facts(), warnings=(odd,)), 80)
    assert outcome == WARNING.replace("Nothing to change: the machine is as it should be.", "Nothing was changed.")


def test_nothing_to_do() -> None:
    """A plan without changes is one sentence."""
    text = plain(plan_view(Plan(changes=(), refused=(), wanted={}, rules=())), 80)
    assert text == "Nothing to change: the machine is as it should be.\n"


def test_a_plan_that_only_refuses_does_not_say_all_is_well() -> None:
    """A refused setting is not as it should be."""
    text = plain(plan_view(Plan(changes=(), refused=REFUSED, wanted={}, rules=())), 80)
    assert text.startswith("Nothing to change, but not everything is accepted.\n\nrefused  trial")


def test_outcome() -> None:
    """What was read back counts: a failed write and a value that somebody else changed are told as such."""
    results = (
        result(MAX, "WriteFailed", "the kernel refused 1914886 (out of memory); ask for less"),
        result("notrack/web"),
        result("net.netfilter.nf_conntrack_acct"),
    )
    view = outcome_view(CHANGES, results, facts(**{MAX: 262144, ESTABLISHED: 7200}))
    assert plain(view, 80) == OUTCOME


@pytest.mark.parametrize(
    ("kept", "words"), [(1, "1 setting was right already."), (2, "2 settings were right already.")]
)
def test_an_outcome_without_changes(kept: int, words: str) -> None:
    """Done again, nothing is changed, and that is said."""
    view = outcome_view((), [result(f"net.netfilter.key{number}") for number in range(kept)], facts())
    assert plain(view, 80) == f"Nothing was changed.\n\n{words}\n"
