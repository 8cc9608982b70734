"""A listing read piece by piece is the same listing, however it is cut."""

import io
import json
from typing import Any

import pytest

from conntrack_operator.errors import Retry
from conntrack_operator.kernel.json_stream import objects

LISTING: list[dict[str, Any]] = [
    {"metainfo": {"version": "1.0.6"}},
    {"map": {"name": "np", "type": ["inet_proto", "inet_service"], "map": "verdict", "elem": [
        [{"concat": ["tcp", 30080]}, {"goto": {"target": "a b"}}], [{"concat": ["udp", 53]}, {"drop": None}]]}},
    {"set": {"name": "empty", "type": "ipv4_addr"}},
    {"set": {"name": "none", "type": "ipv4_addr", "elem": []}},
    {"rule": {"handle": 12345, "expr": [{"accept": None}, {"x": '}],\\" ü'}]}},
]  # fmt: skip


def read(text: str, size: int) -> list[dict[str, Any]]:
    """Read a listing of which `size` characters come at a time."""
    stream = io.StringIO(text)
    return [{kind: found} for kind, found in objects(lambda _: stream.read(size), lambda _, __: True)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_pieces_of_any_size_make_the_same_listing(size: int, separators: tuple[str, str]) -> None:
    """Numbers, strings and brackets may be cut anywhere."""
    assert read(json.dumps({"nftables": LISTING}, separators=separators) + "\n", size) == LISTING


def test_elements_are_chosen_by_what_was_read_of_their_set() -> None:
    """Those that are not kept are never gathered; the set's type is known by then."""
    seen = []

    def keep(header: dict[str, Any], element: Any) -> bool:
        seen.append((header["type"], element))
        return False

    stream = io.StringIO(json.dumps({"nftables": LISTING}))
    found = [each for kind, each in objects(stream.read, keep) if kind == "map"]
    assert found[0]["elem"] == []
    assert [kind for kind, _ in seen] == [["inet_proto", "inet_service"]] * 2


NO_LISTING = ("", "{", "[]", '{"other": []}', '{"nftables": [{"rule": {"handle": 1', '{"nftables": {}}')


@pytest.mark.parametrize("text", NO_LISTING)
def test_what_is_no_listing_is_an_error(text: str) -> None:
    """A program that was killed half way leaves a cut listing, which is not taken for a whole one."""
    with pytest.raises(Retry):
        read(text, 100)
