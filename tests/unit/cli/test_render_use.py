"""The table's use and its talkers, as golden text at 80 columns and as JSON with the documented keys."""

from dataclasses import replace

from conntrack_operator.cli.render_use import Use, memory_words, status_view, top_document, top_view
from conntrack_operator.cli.terminal import plain
from conntrack_operator.decide.notrack import Bypassed
from conntrack_operator.decide.talkers import Row, Top
from conntrack_operator.kernel.counters import Counters

COUNTERS = Counters(entries=262144, max_entries=262144, drop=20400, early_drop=7, chain_toolong=2)
USE = Use(
    counters=COUNTERS,
    buckets=65536,
    entry_bytes=256,
    bucket_bytes=8,
    bypassed=(Bypassed("web", "requests", 1234567, 98765432), Bypassed("web", "replies", 12, 3456)),
)
STATUS = """\
entries  262,144 of 262,144  100.0%  ████████████████████
buckets  65,536, 4 entries in each when full, on average
memory   64.5 MiB now, 64.5 MiB when full (256 bytes an entry)

COUNTER          TOTAL  MEANING
──────────────────────────────────────────────────────────────────────────────
drop            20,400  packets lost: the table was full, or see insert_failed
early_drop           7  entries thrown out to make room in a full table
insert_failed        0  entries not made, mostly as an equal one was first
invalid              0  packets that fit no connection and can start none
found                0  port choices for NAT that met one already taken
search_restart       0  lookups begun anew, as the table moved meanwhile
chain_toolong        2  entries refused: too many in one bucket

NOTRACK RULES  WHAT        PACKETS       BYTES
──────────────────────────────────────────────
web            requests  1,234,567  98,765,432
web            replies          12       3,456
"""
SAMPLED = Top(
    sampled=65536,
    entries=262144,
    rows=(
        Row("2001:db8:1234:5678:9abc:def0:1234:5678", 52772, 0.2013, 0.003),
        Row("198.51.100.7", 6748, 0.0257, 0.001),
    ),
)


def test_status() -> None:
    """A full table: the bar, what it costs, every counter that says something, and what bypassed it."""
    assert plain(status_view(USE), 80) == STATUS


def test_no_limit() -> None:
    """A limit of 0 means none: no percent, no division."""
    use = replace(USE, counters=Counters(entries=5, max_entries=0))
    assert "entries  5, and no limit\n" in plain(status_view(use), 80)
    assert use.document()["usedPercent"] == 0


def test_status_document() -> None:
    """The keys programs rely on, in camelCase."""
    document = USE.document()
    assert {key: document[key] for key in ("entries", "maxEntries", "buckets", "usedPercent", "entryBytes")} == {
        "entries": 262144,
        "maxEntries": 262144,
        "buckets": 65536,
        "usedPercent": 100.0,
        "entryBytes": 256,
    }
    assert document["memoryBytes"] == 262144 * 256 + 65536 * 8
    assert document["counters"].items() >= {
        "drop": 20400, "earlyDrop": 7, "insertFailed": 0, "invalid": 0, "found": 0, "searchRestart": 0,
    }.items()  # fmt: skip
    assert document["notrack"][1] == {"rule": "web", "part": "replies", "packets": 12, "bytes": 3456}


def test_top_of_a_sample() -> None:
    """An estimate says so: about, plus and minus, how much was read; an IPv6 address fits 80 columns whole."""
    text = plain(top_view(SAMPLED, "source", 524288), 80)
    assert text.startswith("262,144 entries of at most 524,288 (50%) in this network namespace's table\n")
    assert "2001:db8:1234:5678:9abc:def0:1234:5678  ~52,772  20.1%" in text
    assert "65,536 of 262,144 entries were read" in text
    assert "--exact reads all of them." in text
    assert "other network namespaces" in text
    assert max(map(len, text.splitlines())) <= 80


def test_top_of_everything() -> None:
    """What was counted has no plus and minus."""
    top = Top(sampled=3, entries=3, rows=(Row("53/UDP", 3, 1.0, 0.0),))
    text = plain(top_view(top, "port"), 80)
    assert "53/UDP        3  100.0%" in text
    assert "~" not in text
    assert "+/-" not in text
    assert "All entries were read." in text


def test_top_of_nothing() -> None:
    """An empty table is a sentence and no empty table."""
    text = plain(top_view(Top(0, 0, ()), "zone", 262144), 80)
    assert text.startswith("0 entries of at most 262,144 (0%) in")
    assert "Nothing to show: the table is empty." in text


def test_top_document() -> None:
    """The keys programs rely on; shares are fractions."""
    assert top_document(SAMPLED) == {
        "sampled": 65536,
        "entries": 262144,
        "rows": [
            {"key": "2001:db8:1234:5678:9abc:def0:1234:5678", "entries": 52772, "share": 0.2013, "error": 0.003},
            {"key": "198.51.100.7", "entries": 6748, "share": 0.0257, "error": 0.001},
        ],
    }


def test_memory_words() -> None:
    """Small numbers are not 0.0 MiB."""
    assert [memory_words(number) for number in (512, 51_200, 1 << 20, 3 << 30)] == [
        "0.5 KiB", "50.0 KiB", "1.0 MiB", "3,072.0 MiB",
    ]  # fmt: skip
