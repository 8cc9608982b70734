"""nft's JSON as it comes, one object after another, so that a table of any size is never in memory at once.

nft prints one line, `{"nftables": [{"set": {..., "elem": [...]}}, {"rule": {...}}, ...]}`. The elements of a set are
handed out one by one too: kube-proxy's maps hold one for each Service.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from conntrack_operator.errors import Retry

CHUNK = 65_536
ONE_OBJECT_MAX = 32 << 20
"""Bytes of one object, or one element of a set; the kernel takes no rule of that size."""

Keep = Callable[[dict[str, Any], Any], bool]
"""Tells whether an element is kept, given what was read of its set so far (its type comes before its elements)."""

_decode = json.JSONDecoder().raw_decode


class _Text:
    """The text from `at` on, read on when it runs out."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read = read
        self._text = ""
        self._at = 0
        self._over = False

    def value(self) -> Any:
        """Return the next JSON value."""
        while True:
            self._skip_space()
            try:
                value, end = _decode(self._text, self._at)
            except ValueError as error:
                if self._over or len(self._text) - self._at > ONE_OBJECT_MAX:
                    raise Retry(
                        "nft printed a listing that is no JSON or is cut short; it will be read again"
                    ) from error
            else:
                if end < len(self._text) or self._over:  # a number may go on
                    self._at = end
                    return value
            self._more()

    def peek(self) -> str:
        """Return the next sign that is no space, empty at the end."""
        self._skip_space()
        while self._at >= len(self._text) and not self._over:
            self._more()
            self._skip_space()
        return self._text[self._at : self._at + 1]

    def sign(self) -> str:
        """Return the next sign as `peek` does, and go past it."""
        found = self.peek()
        self._at += 1
        return found

    def expect(self, wanted: str) -> None:
        """Go past a sign that must be there."""
        if self.sign() != wanted:
            raise Retry("nft printed a listing in a form nobody knows; use another version of nft")

    def _skip_space(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1

    def _more(self) -> None:
        # At least as much as waits already, so that a long value is not tried again and again.
        read = self._read(max(CHUNK, len(self._text) - self._at))
        self._text = self._text[self._at :] + read
        self._at = 0
        self._over = not read


def objects(read: Callable[[int], str], keep: Keep) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (kind, object) of a listing that `read(characters)` returns piece by piece.

    Raises errors.Retry when it is no such listing.
    """
    text = _Text(read)
    text.expect("{")
    if text.value() != "nftables":
        raise Retry("nft printed a listing in a form nobody knows; use another version of nft")
    text.expect(":")
    text.expect("[")
    sign = ","
    while sign == ",":
        text.expect("{")
        kind = text.value()
        text.expect(":")
        yield kind, _set(text, keep) if kind in ("set", "map") else text.value()
        text.expect("}")
        sign = text.sign()


def _set(text: _Text, keep: Keep) -> dict[str, Any]:
    found: dict[str, Any] = {}
    text.expect("{")
    sign = ","
    while sign == ",":
        key = text.value()
        text.expect(":")
        found[key] = _elements(text, found, keep) if key == "elem" else text.value()
        sign = text.sign()
    return found


def _elements(text: _Text, header: dict[str, Any], keep: Keep) -> list[Any]:
    kept: list[Any] = []
    text.expect("[")
    sign = "," if text.peek() != "]" else text.sign()
    while sign == ",":
        element = text.value()
        if keep(header, element):
            kept.append(element)
        sign = text.sign()
    return kept
