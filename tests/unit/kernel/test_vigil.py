"""Vigil's coalescing, with a clock and a generation that the test moves."""

import pytest

from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.table_rivals import read_flushers
from conntrack_operator.kernel.vigil import Vigil

ACCT = "net.netfilter.nf_conntrack_acct"


class World:
    """A kernel: one sysctl, a generation, tracking."""

    def __init__(self, path):
        self.roots = Roots(proc=path)
        self.roots.netfilter.mkdir(parents=True)
        self.generation = 1
        self.families = frozenset()
        self.asked = 0
        self.write(1)
        self.vigil = Vigil(self.roots, lambda: self.generation, self._families)

    def _families(self):
        self.asked += 1
        return self.families

    def write(self, value):
        """Write the sysctl."""
        (self.roots.netfilter / "nf_conntrack_acct").write_text(f"{value}\n")


@pytest.fixture
def world(tmp_path):
    """Return a world in which all is as expected, and surroundings were just read."""
    made = World(tmp_path)
    made.vigil.expect({ACCT: 1}, table=True, mark=made.vigil.mark(), off=True)
    assert made.vigil.moved(0.0).surroundings
    return made


def test_nothing_moves(world):
    """A quiet node is asked often and has nothing to tell, but surroundings once a minute."""
    assert not any(world.vigil.moved(second) for second in range(1, 60))
    assert world.vigil.moved(60.0).surroundings


def test_a_sysctl_is_told_until_it_is_right(world):
    """As long as it differs, and when it is gone."""
    world.write(0)
    assert world.vigil.moved(1.0).sysctls == {ACCT}
    assert world.vigil.moved(1.1).sysctls == {ACCT}
    world.write(1)
    assert not world.vigil.moved(1.2)
    (world.roots.netfilter / "nf_conntrack_acct").unlink()
    assert world.vigil.moved(1.3).sysctls == {ACCT}


def test_movements_are_told_once(world):
    """One movement is worth one reading."""
    world.generation += 1
    assert world.vigil.moved(5.0).table
    assert not world.vigil.moved(8.0).table


def test_movements_are_coalesced_and_never_lost(world):
    """A rival that moves nftables ten times a second costs one reading in two seconds, and the last one is told."""
    told = []
    for tenth in range(100):
        world.generation += 1
        if world.vigil.moved(5.0 + tenth / 10).table:
            told.append(5.0 + tenth / 10)
    assert 5 <= len(told) <= 6
    assert world.vigil.moved(told[-1] + 2.0).table
    assert not world.vigil.moved(told[-1] + 5.0).table


def test_surroundings_wait_ten_seconds(world):
    """They cost more: a movement is followed within ten seconds, a steady one every ten."""
    world.generation += 1
    assert [second for second in range(1, 40) if world.vigil.moved(float(second)).surroundings] == [10]
    world.generation += 1
    assert world.vigil.moved(41.0).surroundings


def test_what_moved_while_reading_back_is_told(world):
    """The mark is taken before reading back, so a change after it is not taken for ours."""
    mark = world.vigil.mark()
    world.generation += 1
    world.vigil.expect({ACCT: 1}, table=True, mark=mark)
    assert world.vigil.moved(5.0).table


def test_no_rules_no_table(world):
    """Without rules of ours nftables is not our business."""
    world.vigil.expect({}, table=False, mark=world.vigil.mark())
    world.generation += 1
    assert not world.vigil.moved(5.0).table


def test_tracking_is_asked_for_every_two_seconds(world):
    """Only while it is to be off; not knowing is no alarm."""
    world.families = frozenset({4})
    assert world.vigil.moved(3.0).tracking
    asked = world.asked
    assert not world.vigil.moved(4.0).tracking
    assert world.asked == asked
    world.families = None
    assert not world.vigil.moved(6.0).tracking
    world.families = frozenset({4})
    world.vigil.expect({}, table=False, mark=1)
    assert not world.vigil.moved(9.0).tracking


def test_without_nftables(tmp_path):
    """No permission, no nf_tables: nothing moves, nothing is raised."""

    def no_generation():
        raise Unsupported("no nf_tables")

    world = World(tmp_path)
    vigil = Vigil(world.roots, no_generation)
    vigil.expect({ACCT: 1}, table=True, mark=vigil.mark())
    assert not vigil.moved(1.0).table


def test_files_that_flush(tmp_path):
    """Debian's and Fedora's files are found with their lines; a comment is no flush."""
    (tmp_path / "sysconfig").mkdir()
    (tmp_path / "nftables.conf").write_text("#!/usr/sbin/nft -f\n\nflush ruleset\n")
    (tmp_path / "sysconfig/nftables.conf").write_text("# flush ruleset\n")
    assert read_flushers(Roots(etc=tmp_path)) == (f"{tmp_path}/nftables.conf:3",)
