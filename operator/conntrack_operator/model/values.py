"""The small values policies are written in: durations, ports, addresses, interface names, percentages.

Each is an annotated type that judges, parses and describes itself, with the sentence a person reads when
it is wrong. All are int-or-string where Kubernetes people expect that.
"""

import ipaddress
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from .rules import Rule

INT_MAX = 2_147_483_647
DURATION_MAX_SECONDS = 2_147_483
"""Timeouts are jiffies in an int (proc_dointvec_jiffies); with HZ=1000 that ends at 24 days 20 hours."""

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,7})s)?", re.ASCII)
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}", re.ASCII)
_PERCENT = re.compile(r"(?:100|\d{1,2})%", re.ASCII)
_PREFIXED = re.compile(r"[^/]+(?:/(?:0|[1-9]\d{0,2}))?", re.ASCII)


def seconds_in(value: Any) -> int | None:
    """Return the whole seconds `value` stands for (`90s`, `1h30m`, or a bare integer), or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str) and value and (match := _DURATION.fullmatch(value)):
        hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    else:
        return None
    return seconds if 1 <= seconds <= DURATION_MAX_SECONDS else None


def ports_in(value: Any) -> tuple[int, int] | None:
    """Return (first, last) of a port or of a range such as `8000-8100`, or None when it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        first = last = value
    elif isinstance(value, str) and (match := _PORTS.fullmatch(value)):
        first = int(match[1])
        last = int(match[2] or match[1])
    else:
        return None
    return (first, last) if 1 <= first <= last <= 65535 else None


def _is_network(value: Any) -> bool:
    # As the API server reads it: no zone, no netmask, no leading zero, no IPv4 address dressed as IPv6.
    if not isinstance(value, str) or "%" in value or not _PREFIXED.fullmatch(value):
        return False
    try:
        network = ipaddress.ip_network(value)
    except ValueError:
        return False
    return not (isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped)


def _int_or_percent_holds(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_PERCENT.fullmatch(value))
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1_000_000


DURATION_RULE = Rule(
    cel=(
        "type(self) == int ? self >= 1 && self <= 2147483 : "
        "self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,7}s)?$') && self != '' && "
        "duration(self) >= duration('1s') && duration(self) <= duration('2147483s')"
    ),
    holds=lambda value: seconds_in(value) is not None,
    sentence=(
        "must be a duration with a unit, such as 90s, 2m, 1h or 1h30m, or whole seconds as a bare number without"
        " quotes, from 1 to 2147483 seconds"
    ),
)
PORT_RULE = Rule(
    cel=(
        "type(self) == int ? self >= 1 && self <= 65535 : self.matches('^[0-9]{1,5}(-[0-9]{1,5})?$') && "
        "int(self.split('-')[0]) >= 1 && int(self.split('-')[self.split('-').size() - 1]) <= 65535 && "
        "int(self.split('-')[0]) <= int(self.split('-')[self.split('-').size() - 1])"
    ),
    holds=lambda value: ports_in(value) is not None,
    sentence='must be a port from 1 to 65535, or a range with the lower port first, such as "8000-8100"',
)
NETWORK_RULE = Rule(
    cel="isCIDR(self) ? cidr(self) == cidr(self).masked() : isIP(self)",
    holds=_is_network,
    sentence=(
        "must be an IPv4 or IPv6 address, or a network in CIDR form with no bits set behind the prefix, such as"
        " 192.0.2.0/24 or fd00::/8"
    ),
)
INTERFACE_RULE = Rule(
    cel="self.matches('^[A-Za-z0-9_.:@-]{1,15}$')",
    holds=lambda value: isinstance(value, str) and bool(_INTERFACE.fullmatch(value)),
    sentence="must be the name of a network interface, at most 15 letters, digits or any of _ . : @ -, such as eth0",
)
INT_OR_PERCENT_RULE = Rule(
    cel="type(self) == int ? self >= 0 && self <= 1000000 : self.matches('^(100|[0-9]{1,2})%$')",
    holds=_int_or_percent_holds,
    sentence="must be a whole number of nodes, or a percentage from 0% to 100%, such as 10%",
)


def check_shape(value: Any, max_length: int, *types: type) -> None:
    """Raise pydantic's error when `value` is none of `types` (str, or int and str) or a longer string."""
    if isinstance(value, bool) or not isinstance(value, types):
        raise PydanticCustomError("int_or_string_type" if int in types else "string_type", "must be of another type")
    if isinstance(value, str) and len(value) > max_length:
        raise PydanticCustomError("string_too_long", "too long", {"max_length": max_length})


def _judged(rule: Rule, max_length: int, *types: type) -> BeforeValidator:
    """Judge the raw value as the API server does: its type, its length, then the rule."""

    def judge(value: Any) -> Any:
        check_shape(value, max_length, *types)
        rule.check(value)
        return value

    return BeforeValidator(judge)


def _int_or_string(rule: Rule, max_length: int, words: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": max_length,
            "description": words,
            "x-kubernetes-validations": [rule.as_validation()],
        }
    )


def _string(rule: Rule, max_length: int, words: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "type": "string",
            "maxLength": max_length,
            "description": words,
            "x-kubernetes-validations": [rule.as_validation()],
        }
    )


# pydantic applies BeforeValidators right to left: the judge sees the raw value first.
Seconds = Annotated[
    int,
    BeforeValidator(seconds_in),
    _judged(DURATION_RULE, 24, int, str),
    _int_or_string(DURATION_RULE, 24, "Write 90s, 2m, 1h or 1h30m, or whole seconds as a bare number."),
]
"""A duration as people write it, held as whole seconds."""

Ports = Annotated[
    int | str,
    _judged(PORT_RULE, 11, int, str),
    _int_or_string(PORT_RULE, 11, 'A port such as 80, or a range such as "8000-8100".'),
]
"""A port or a range of ports, held as written; `ports_in` reads it."""

Network = Annotated[
    str,
    _judged(NETWORK_RULE, 43, str),
    _string(NETWORK_RULE, 43, "An address or a network of either family, such as 192.0.2.7 or fd00::/8."),
]
"""An address or a CIDR network of either family, held as written."""

InterfaceName = Annotated[
    str, _judged(INTERFACE_RULE, 15, str), _string(INTERFACE_RULE, 15, "An interface, such as eth0.")
]

IntOrPercent = Annotated[
    int | str,
    _judged(INT_OR_PERCENT_RULE, 7, int, str),
    _int_or_string(INT_OR_PERCENT_RULE, 7, "A number of nodes, or a percentage of them such as 10%."),
]

Entries = Annotated[int, Field(strict=True, ge=1, le=INT_MAX)]
"""A number of connection-tracking entries."""
