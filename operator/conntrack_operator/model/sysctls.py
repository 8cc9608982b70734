"""What may stand in `spec.sysctls`: keys of the catalogue that have no field of their own, with values in their range.

Both halves, CEL and Python, are made from the catalogue, and each names the alphabetically first offender, since the
order of a map's keys is not the same for both. (Of several keys nobody knows the API server names any one.) The
sentences say what to write instead: people bring names from old howtos (ip_conntrack_*), full dotted names, and keys
that have a field.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from .catalogue import CATALOGUE, OTHER, Sysctl
from .rules import Rule
from .values import check_shape

MOST_KEYS = 32
"""Keys one policy may set; the catalogue has fewer."""

_LONGEST_VALUE = 10
_DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)


def complaint_about(key: str) -> str:
    """Return why `key` may not stand in spec.sysctls and what to write instead; empty when it may."""
    if key in OTHER:
        return ""
    if "." in key:
        return SYSCTL_RULES[0].sentence
    return _WRONG.get(key, f"{key}{_UNKNOWN}")


def number_in(value: Any) -> int | None:
    """Return the whole number `value` is or spells (1 and "1" are the same), or None."""
    if isinstance(value, str):
        return int(value) if _DIGITS.fullmatch(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _remedy(entry: Sysctl) -> str:
    if entry.field:
        return f"{entry.name} has a field of its own, write spec.{entry.field}"
    return f"write {entry.name}" if entry.writable else f"{entry.name} cannot be written, remove it"


def _wrong_keys() -> dict[str, str]:
    """List the keys that have a sentence of their own: not settable here, or named as of old."""
    sentences = {}
    for entry in CATALOGUE:
        old = f"ip_{entry.name.removeprefix('nf_')}"
        if entry.name not in OTHER:
            sentences[entry.name] = _remedy(entry)
        sentences[old] = f"{old} is an old name of {entry.name}; {_remedy(entry)}"
    return dict(sorted(sentences.items()))


def _literal(mapping: dict[str, str]) -> str:
    return "{" + ", ".join(f"'{key}': {value}" for key, value in mapping.items()) + "}"


def _range_sentence(entry: Sysctl) -> str:
    return f"{entry.name} must be a whole number from {entry.minimum} to {entry.maximum}"


def _in_range(entry: Sysctl, value: Any) -> bool:
    number = number_in(value)
    return number is not None and entry.minimum <= number <= entry.maximum


_UNKNOWN = " is no nf_conntrack sysctl this version knows; it takes " + ", ".join(
    name for name, entry in OTHER.items() if not entry.until
)
_OTHERS = tuple(sorted(OTHER))
_WRONG = _wrong_keys()


def _wrong(value: dict[str, Any]) -> list[str]:
    return [key for key in _WRONG if key in value]


def _unknown(value: dict[str, Any]) -> list[str]:
    return sorted(key for key in value if key not in OTHER and key not in _WRONG and "." not in key)


def _out_of_range(value: dict[str, Any]) -> list[str]:
    return [key for key in _OTHERS if key in value and not _in_range(OTHER[key], value[key])]


_CEL_NUMBER = "(type(self[key]) == int ? int(self[key]) : self[key].matches('^[0-9]{1,10}$') ? int(self[key]) : -1)"
_CEL_OUT_OF_RANGE = f"key in self && !({_CEL_NUMBER} >= ranges[key][0] && {_CEL_NUMBER} <= ranges[key][1])"
_CEL_KNOWN = repr([*_OTHERS, *_WRONG])
_CEL_RANGES = _literal({key: f"[{OTHER[key].minimum}, {OTHER[key].maximum}]" for key in _OTHERS})
_CEL_WRONG = _literal({key: f"'{sentence}'" for key, sentence in _WRONG.items()})
_CEL_RANGE_SENTENCES = _literal({key: f"'{_range_sentence(OTHER[key])}'" for key in _OTHERS})

# The API server estimates a cost for every expression, and strings of unknown length are what it fears most: hence
# whole sentences as literals, looked up by key, and a key is glued to a sentence in one place only.
SYSCTL_RULES = (
    Rule(
        cel="self.all(key, !key.contains('.'))",
        holds=lambda value: not any("." in key for key in value),
        sentence="takes the last part of a name alone: write nf_conntrack_acct, not net.netfilter.nf_conntrack_acct",
    ),
    Rule(
        cel=f"!{list(_WRONG)}.exists(key, key in self)",
        holds=lambda value: not _wrong(value),
        sentence="takes only keys that have no field of their own, by today's short name",
        sentence_cel=f"[{_CEL_WRONG}].map(words, words[{list(_WRONG)}.filter(key, key in self)[0]])[0]",
        explain=lambda value: _WRONG[_wrong(value)[0]],
    ),
    Rule(
        cel=f"[{_CEL_KNOWN}].all(known, self.all(key, key in known || key.contains('.')))",
        holds=lambda value: not _unknown(value),
        sentence=f"a key{_UNKNOWN}",
        sentence_cel=(
            f"[{_CEL_KNOWN}].map(known, self.filter(key, !(key in known || key.contains('.')))[0] + '{_UNKNOWN}')[0]"
        ),
        explain=lambda value: complaint_about(_unknown(value)[0]),
    ),
    Rule(
        cel=f"[{_CEL_RANGES}].all(ranges, !{list(_OTHERS)}.exists(key, {_CEL_OUT_OF_RANGE}))",
        holds=lambda value: not _out_of_range(value),
        sentence="has a value out of range",
        sentence_cel=(
            f"[{_CEL_RANGES}].map(ranges, {list(_OTHERS)}.filter(key, {_CEL_OUT_OF_RANGE})"
            f".map(key, {_CEL_RANGE_SENTENCES}[key])[0])[0]"
        ),
        explain=lambda value: _range_sentence(OTHER[_out_of_range(value)[0]]),
    ),
)


def _shaped(value: Any) -> Any:
    check_shape(value, _LONGEST_VALUE, int, str)
    return value


def _judge(value: dict[str, Any]) -> dict[str, int | None]:
    for rule in SYSCTL_RULES:
        rule.check(value)
    return {key: number_in(number) for key, number in value.items()}


Sysctls = Annotated[
    dict[str, Annotated[int, PlainValidator(_shaped)]],
    Field(max_length=MOST_KEYS),
    AfterValidator(_judge),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MOST_KEYS,
            "additionalProperties": {
                "x-kubernetes-int-or-string": True,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "maxLength": _LONGEST_VALUE,
                "description": "Its value, a whole number.",
            },
            "x-kubernetes-validations": [rule.as_validation() for rule in SYSCTL_RULES],
        }
    ),
]
"""Sysctls by name, held as numbers."""
