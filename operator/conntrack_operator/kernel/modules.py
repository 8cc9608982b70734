"""Kernel modules that need nf_conntrack: which are loaded, unloading them, and loading it again.

Module code is the machine's, not a network namespace's. A kernel with nf_conntrack built in has nothing of this, and
says so by having no /sys/module/nf_conntrack/initstate.
"""

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Literal

from conntrack_operator.errors import ConntrackOperatorError, Refused, Unsupported
from conntrack_operator.model.surroundings import LoadedModule

from .counters import GET_STATS
from .netlink import Netlink
from .roots import Roots

CONNTRACK = "nf_conntrack"
CAP_SYS_MODULE = 16
"""include/uapi/linux/capability.h"""
TIMEOUT_SECONDS = 30
_BUSY = (errno.EWOULDBLOCK, errno.EBUSY)

Presence = Literal["absent", "built in", "loaded"]


def presence_of_conntrack(roots: Roots) -> Presence:
    """Tell whether this kernel has nf_conntrack now, and whether it is a module. Raises nothing."""
    if not (roots.netfilter / "nf_conntrack_count").exists():
        return "absent"
    # Only a module has a state; what is built in has parameters at most (kernel/module/sysfs.c).
    return "loaded" if (roots.sys / "module" / CONNTRACK / "initstate").exists() else "built in"


def read_modules(roots: Roots) -> tuple[LoadedModule, ...]:
    """Return nf_conntrack and the loaded modules that need it, directly or not. Raises nothing.

    Empty where the kernel has no modules or does not list them; what is built in is never listed.
    """
    try:
        text = roots.file("modules").read_text()
    except OSError:
        return ()
    modules = {module.name: module for module in _parsed(text)}
    waiting, found = [CONNTRACK], set[str]()
    while waiting:
        module = modules.get(waiting.pop())
        if module is not None and module.name not in found:
            found.add(module.name)
            waiting.extend(module.users)
    return tuple(modules[name] for name in sorted(found))


def _parsed(text: str) -> Iterator[LoadedModule]:
    # name, size, references (or - where the kernel cannot unload), users with a comma each (or -), state, address
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 4:
            references = int(fields[2]) if fields[2].isdigit() else 1
            users = tuple(user for user in fields[3].split(",") if user and user != "-" and not user.startswith("["))
            yield LoadedModule(fields[0], references, users)


def may_unload(roots: Roots) -> bool:
    """Tell whether this process may unload modules: CAP_SYS_MODULE, kernel.modules_disabled 0. Raises nothing."""
    try:
        disabled = roots.file("sys/kernel/modules_disabled").read_text().strip() == "1"
        status = roots.file("self/status").read_text()
    except OSError:
        return False  # a kernel without modules has no modules_disabled either
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return not disabled and bool(int(effective, 16) >> CAP_SYS_MODULE & 1)


def _delete_module(name: str) -> int:
    """Call delete_module(2); return 0 or the errno. O_NONBLOCK: a module in use is refused, never waited for."""
    # The C libraries export it without declaring it.
    libc = ctypes.CDLL(None, use_errno=True)
    done: int = libc.delete_module(name.encode(), os.O_NONBLOCK)
    return ctypes.get_errno() if done != 0 else 0


def unload(name: str, delete: Callable[[str], int] = _delete_module) -> None:
    """Unload one module. One that is not loaded is fine.

    Raises Unsupported when this process may not, Refused (ModuleInUse) when somebody uses it.
    """
    number = delete(name)
    if number in (0, errno.ENOENT):
        return
    why = os.strerror(number)
    if number in _BUSY:
        raise Refused("ModuleInUse", f"{name} cannot be unloaded ({why}); see who uses it: grep ^{name} /proc/modules")
    if number == errno.EPERM:
        raise Unsupported(f"{name} may not be unloaded ({why}); give the agent CAP_SYS_MODULE (agent.privileged)")
    raise Unsupported(f"{name} cannot be unloaded on this kernel ({why}); leave it loaded, it tracks nothing by itself")


def load(roots: Roots) -> None:
    """Load nf_conntrack unless it is there. Raises Unsupported when there is no way to.

    By modprobe; where that is missing (a container), by a request to ctnetlink, upon which the kernel loads the module
    itself from the host's /lib/modules (nfnetlink_rcv_msg, net/netfilter/nfnetlink.c; read, not tried: the kernel at
    hand has it built in).
    """
    if presence_of_conntrack(roots) != "absent":
        return
    said = _modprobe()
    if presence_of_conntrack(roots) == "absent":
        _ask_ctnetlink()
    if presence_of_conntrack(roots) == "absent":
        raise Unsupported(f"nf_conntrack cannot be loaded ({said}); run on the host: modprobe nf_conntrack")


def _modprobe() -> str:
    try:
        done = subprocess.run(
            ["modprobe", CONNTRACK],  # noqa: S607  where it lies differs between distributions
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"modprobe: {error}"
    return done.stderr.strip() or f"modprobe exited {done.returncode}"


def _ask_ctnetlink() -> None:
    try:
        with Netlink() as netlink:
            list(netlink.messages(GET_STATS))
    except ConntrackOperatorError:
        return  # whether it helped is seen in /proc
