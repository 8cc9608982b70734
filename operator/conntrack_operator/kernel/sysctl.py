"""Reads and writes nf_conntrack_* sysctls, one by one: a key that fails never hides the others."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from conntrack_operator.errors import Refused, Unsupported
from conntrack_operator.model import catalogue

from .roots import Roots


def read_sysctls(roots: Roots, names: Iterable[str] = ()) -> dict[str, int]:
    """Return the values of every catalogued key this machine has (or of `names` alone), by full dotted name.

    Empty when nf_conntrack is not loaded. Values that are not whole numbers are left out.
    """
    wanted = list(names) or [entry.dotted for entry in catalogue.CATALOGUE]
    values = {}
    for name in wanted:
        try:
            values[name] = int(_path(roots, name).read_bytes())
        except (OSError, ValueError):
            continue
    return values


def write_sysctl(roots: Roots, name: str, value: int) -> None:
    """Write one key.

    Raises Unsupported when this process may not write it (no root, read-only /proc/sys), Refused (WriteFailed) when the
    kernel says no to the value (out of range, no memory for that many buckets).
    """
    path = _path(roots, name)
    try:
        # One write(2), in which the kernel judges the value; no O_CREAT, so that a missing key is ENOENT.
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d\n" % value)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise Unsupported(
                f"{name}: {path} cannot be written ({error.strerror}); run as root in the initial network namespace,"
                " with a writable /proc/sys"
            ) from error
        if error.errno == errno.ENOENT:
            raise Unsupported(
                f"{name}: this kernel has no such key; load nf_conntrack, or remove the setting"
            ) from error
        why = "out of memory" if error.errno == errno.ENOMEM else error.strerror
        raise Refused("WriteFailed", f"{name}: the kernel refused {value} ({why}); ask for less") from error


def is_initial_namespace(roots: Roots) -> bool:
    """Tell whether sizes can be written here.

    nf_conntrack_max is 0444 in every namespace but the initial one (nf_conntrack_standalone.c; tried on 6.18). Absent
    files say nothing, so True.
    """
    try:
        return bool((roots.netfilter / "nf_conntrack_max").stat().st_mode & 0o200)
    except OSError:
        return True


def _path(roots: Roots, name: str) -> Path:
    return roots.netfilter / name.removeprefix(catalogue.PREFIX)
