"""What kube-proxy's configuration makes it write to the kernel, and which key decides it. Pure.

Read: pkg/proxy/conntrack/sysctls.go and the v1alpha1 defaults of Kubernetes 1.37. It writes at its start; versions
differ in whether they lower a larger maximum (kubernetes #103174, #120448, #137002), so the value is its wish.
"""

import json
import re
from collections.abc import Mapping, Sequence

from conntrack_operator.model.catalogue import PREFIX

from .symptoms import Writer

DEFAULTS = {
    "maxPerCore": "32768",
    "min": "131072",
    "tcpEstablishedTimeout": "24h",
    "tcpCloseWaitTimeout": "1h",
    "tcpBeLiberal": "false",
    "udpTimeout": "0s",
    "udpStreamTimeout": "0s",
}
"""Keys below `conntrack:` of its configuration, and what an absent one means."""

FLAGS = {
    "conntrack-max-per-core": "maxPerCore",
    "conntrack-min": "min",
    "conntrack-tcp-timeout-established": "tcpEstablishedTimeout",
    "conntrack-tcp-timeout-close-wait": "tcpCloseWaitTimeout",
    "conntrack-tcp-be-liberal": "tcpBeLiberal",
    "conntrack-udp-timeout": "udpTimeout",
    "conntrack-udp-timeout-stream": "udpStreamTimeout",
}
"""Flags of its command line, for those who run it without a file; a file wins."""

CAP = 1_048_576
"""Newer versions write no more than this for maxPerCore, older ones do."""

_TIMEOUTS = {
    "tcpEstablishedTimeout": "nf_conntrack_tcp_timeout_established",
    "tcpCloseWaitTimeout": "nf_conntrack_tcp_timeout_close_wait",
    "udpTimeout": "nf_conntrack_udp_timeout",
    "udpStreamTimeout": "nf_conntrack_udp_timeout_stream",
}
_GO_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_SECONDS = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}


def config_file_in(arguments: Sequence[str]) -> str:
    """Return the file that --config names on a command line, empty when there is none."""
    return _flags(arguments).get("config", "")


def keys_in_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Return the conntrack keys that the flags of a command line set."""
    flags = _flags(arguments)
    return {key: flags[flag] for flag, key in FLAGS.items() if flag in flags}


def keys_in_config(text: str) -> dict[str, str]:
    """Return the keys below `conntrack:` of a configuration in YAML or JSON; those that are null are left out.

    That block is flat in every version there was, so its lines are enough, and no YAML library is needed.
    """
    if text.lstrip().startswith("{"):
        return _keys_in_json(text)
    found: dict[str, str] = {}
    depth: int | None = None
    for line in text.splitlines():
        bare = line.split(" #", 1)[0].rstrip()
        if not bare.strip() or bare.lstrip().startswith("#"):
            continue
        indent = len(bare) - len(bare.lstrip())
        if depth is not None and indent <= depth:
            depth = None
        if depth is not None:
            found.update(_pair(bare))
        elif match := re.match(r"\s*conntrack:\s*(.*)$", bare):
            depth = indent
            for part in match[1].strip().strip("{}").split(","):
                found.update(_pair(part))
    return found


def writes_of(keys: Mapping[str, str], cpus: int) -> list[tuple[str, int | None, str]]:
    """Return (sysctl by its full dotted name, value, key that decides) of all that kube-proxy writes at its start.

    The value is None where it differs between versions.
    """
    wish = {**DEFAULTS, **keys}
    writes: list[tuple[str, int | None, str]] = []
    per_core = _whole(wish["maxPerCore"])
    if per_core > 0:
        scaled, floor = per_core * cpus, _whole(wish["min"])
        value, key = (scaled, "maxPerCore") if scaled > floor else (floor, "min")
        capped = key == "maxPerCore" and scaled > CAP
        writes.append((f"{PREFIX}nf_conntrack_max", None if capped else value, f"conntrack.{key}"))
    for key, name in _TIMEOUTS.items():
        seconds = _go_seconds(wish[key])
        if seconds > 0:
            writes.append((PREFIX + name, seconds, f"conntrack.{key}"))
    if wish["tcpBeLiberal"].lower() == "true":
        writes.append((f"{PREFIX}nf_conntrack_tcp_be_liberal", 1, "conntrack.tcpBeLiberal"))
    return writes


def default_writers(cpus: int) -> list[Writer]:
    """Return what a kube-proxy that nobody configured writes, of older versions first where they differ."""
    writers = []
    for setting, value, key in writes_of({}, cpus):
        versions = (_whole(DEFAULTS["maxPerCore"]) * cpus, CAP) if value is None else (value,)
        writers += [Writer("kube-proxy", "kube-proxy (its defaults)", setting, each, key) for each in versions]
    return writers


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            value = "true" if not following or following.startswith("-") else following
        found[name] = value
    return found


def _keys_in_json(text: str) -> dict[str, str]:
    try:
        block = json.loads(text).get("conntrack") or {}
        return {key: str(value) for key, value in block.items() if value is not None}
    except (ValueError, AttributeError):
        return {}


def _pair(line: str) -> dict[str, str]:
    key, colon, value = line.partition(":")
    value = value.strip().strip("\"'")
    return {key.strip().strip("\"'"): value} if colon and value not in ("", "null", "~") else {}


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _go_seconds(text: str) -> int:
    return int(sum(float(number) * _SECONDS[unit] for number, unit in _GO_DURATION.findall(text)))
