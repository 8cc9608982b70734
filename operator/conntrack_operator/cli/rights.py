"""Looks before anything is written whether it can be: half an apply is worse than none."""

import os
from collections.abc import Iterable

from conntrack_operator.errors import Unsupported
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.model.catalogue import PREFIX


def require_root(command: str) -> None:
    """Raise Unsupported unless this process runs as root."""
    if os.geteuid() != 0:
        raise Unsupported(f"{command} needs root, this is uid {os.geteuid()}; run it with sudo")


def require_writable(roots: Roots, settings: Iterable[str]) -> None:
    """Raise Unsupported when one of the sysctls among `settings` is there and cannot be written."""
    for setting in settings:
        path = roots.netfilter / setting.removeprefix(PREFIX)
        if setting.startswith(PREFIX) and path.exists() and not os.access(path, os.W_OK):
            raise Unsupported(
                f"{setting}: {path} cannot be written; run where /proc/sys is writable, or name another --proc-root"
            )
