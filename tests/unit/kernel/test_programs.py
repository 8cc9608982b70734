"""What a program's failure comes to for whoever reads its output."""

import pytest

from conntrack_operator.errors import Retry
from conntrack_operator.kernel.json_stream import objects
from conntrack_operator.kernel.programs import Gone, output_of

VANISHED = "echo 'Error: No such file or directory' >&2; exit 1"


def test_output_cut_short_by_a_failure_is_the_failure():
    """A table that vanishes before nft has printed it is gone, and no listing in a form that nobody knows."""
    with pytest.raises(Gone, match="No such file"), output_of(["sh", "-c", VANISHED]) as stream:
        list(objects(stream.read, lambda *_: True))


def test_output_that_makes_no_sense_stays_so_when_the_program_is_content():
    """The reader's own words come through."""
    with pytest.raises(Retry, match="form nobody knows"), output_of(["echo", "nonsense"]) as stream:
        list(objects(stream.read, lambda *_: True))
