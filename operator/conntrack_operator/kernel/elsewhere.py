"""Every other table of this machine that can be full in place of ours: gathered here, read by a module each."""

import re
import subprocess

from conntrack_operator.decide.symptoms import Elsewhere, ZoneLimit

from .ethtool import read_allowances
from .other_namespaces import read_other_namespaces
from .pinned_maps import read_cilium_maps
from .roots import Roots

TIMEOUT_SECONDS = 5
_ZONE = re.compile(r"^zone=(\d+),limit=(\d+),count=(\d+)$", re.MULTILINE)


def read_elsewhere(roots: Roots) -> tuple[Elsewhere, tuple[str, ...]]:
    """Return the other tables, and a sentence about each that could not be looked at. Raises nothing."""
    namespaces, problem = read_other_namespaces(roots)
    zones, zone_problem = read_zone_limits()
    found = Elsewhere(namespaces, read_allowances(), read_cilium_maps(roots), zones)
    return found, tuple(each for each in (problem, zone_problem) if each)


def read_zone_limits() -> tuple[tuple[ZoneLimit, ...], str]:
    """Return the limits Open vSwitch keeps by zone; none where it is not installed or has no datapath here."""
    try:
        done = subprocess.run(
            ["ovs-dpctl", "ct-get-limits"],  # noqa: S607  where it lies differs between distributions
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return (), ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"Open vSwitch's limits by zone could not be read: {error}"
    if done.returncode != 0:
        return (), f"Open vSwitch's limits by zone could not be read: {' '.join(done.stderr.split())[:120]}"
    return zone_limits_in(done.stdout), ""


def zone_limits_in(text: str) -> tuple[ZoneLimit, ...]:
    """Return the limits in what `ovs-dpctl ct-get-limits` prints, one zone a line."""
    return tuple(ZoneLimit(int(zone), int(limit), int(count)) for zone, limit, count in _ZONE.findall(text))
