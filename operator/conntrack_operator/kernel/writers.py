"""Who else writes nf_conntrack settings on this machine, found in files and processes, with line and key.

sysctl.d and TuneD write at boot, kube-proxy at its start, modprobe when the module is loaded. Only read, never run.
"""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from conntrack_operator.decide.kube_proxy import config_file_in, keys_in_arguments, keys_in_config, writes_of
from conntrack_operator.decide.symptoms import Writer
from conntrack_operator.errors import ConntrackOperatorError
from conntrack_operator.model.catalogue import BY_NAME, PREFIX

from .facts import read_boot_id
from .journal import StateDirectory
from .roots import Roots

LARGEST_BYTES = 1 << 20
"""Of a configuration file; a larger one is none."""
PROFILE_DEPTH = 8
"""TuneD profiles that include each other."""
_ASSIGNMENT = re.compile(r"\s*-?\s*([A-Za-z0-9_./*?\[\]-]+)\s*=\s*(.*?)\s*$")
_HASHSIZE = re.compile(r"\s*options\s+nf_conntrack\b.*\bhashsize=(\d+)")
_INCLUDE = re.compile(r"\s*include\s*=\s*(.+?)\s*$")
_OLD = re.compile(r"^net\.(?:ipv4\.)?(?:netfilter\.)?(?:ip|nf)_conntrack_")


def read_writers(roots: Roots, cpus: int) -> tuple[Writer, ...]:
    """Return everybody who writes a setting of ours, in the order in which they come to it. Raises nothing."""
    return (
        *_of_modprobe(roots),
        *_of_sysctl_files(roots),
        *_of_tuned(roots),
        *_of_kube_proxy(roots, cpus),
        *_of_ourselves(roots),
    )


def setting_of(key: str) -> str:
    """Return the full dotted name of the nf_conntrack sysctl that `key` means, empty when it means none.

    Takes dots or slashes, net.nf_conntrack_max, and the names of before 2.6.15 (ip_conntrack_*).
    """
    dotted = key.strip().lstrip("-").replace("/", ".").removeprefix("proc.sys.")
    name = f"nf_conntrack_{_OLD.sub('', dotted)}" if _OLD.match(dotted) else ""
    return PREFIX + name if name in BY_NAME else ""


def _of_sysctl_files(roots: Roots) -> Iterator[Writer]:
    """Yield what `sysctl --system` would write. A file hides those of its name in later directories; later ones win."""
    files: dict[str, Path] = {}
    for directory in (roots.etc, roots.run, roots.usr / "local/lib", roots.usr / "lib"):
        for path in sorted((directory / "sysctl.d").glob("*.conf")):
            files.setdefault(path.name, path)
    ordered = [files[name] for name in sorted(files)] + [roots.etc / "sysctl.conf", roots.etc / "ufw/sysctl.conf"]
    seen: set[Path] = set()
    for path in ordered:
        real = _real(path)
        if real in seen:
            continue  # 99-sysctl.conf is a link to sysctl.conf on Debian
        seen.add(real)
        for number, line in _lines(path):
            for setting, value in _assignments(line):
                yield Writer("sysctl.d", f"{path}:{number}", setting, value)


def _assignments(line: str) -> Iterator[tuple[str, int | None]]:
    match = _ASSIGNMENT.match(line)
    if not match or line.lstrip().startswith(("#", ";")):
        return
    key, value = match[1], _whole(match[2])
    if any(sign in key for sign in "*?["):
        pattern = key.lstrip("-").replace("/", ".")
        for entry in BY_NAME.values():
            if entry.writable and not entry.until and fnmatchcase(entry.dotted, pattern):
                yield entry.dotted, value
    elif setting := setting_of(key):
        yield setting, value


def _of_modprobe(roots: Roots) -> Iterator[Writer]:
    for directory in (roots.etc / "modprobe.d", roots.run / "modprobe.d", roots.usr / "lib/modprobe.d"):
        for path in sorted(directory.glob("*.conf")):
            for number, line in _lines(path):
                if match := _HASHSIZE.match(line):
                    buckets = f"{PREFIX}nf_conntrack_buckets"
                    yield Writer(
                        "modprobe.d", f"{path}:{number}", buckets, int(match[1]), "options nf_conntrack hashsize"
                    )


def _of_tuned(roots: Roots) -> Iterator[Writer]:
    """Yield what the active TuneD profiles write: several can be active, each can include others."""
    names = " ".join(line for _, line in _lines(roots.etc / "tuned/active_profile")).split()
    waiting, seen = [(name, 0) for name in names], set(names)
    while waiting:
        name, depth = waiting.pop(0)
        path = _profile(roots, name)
        if path is None:
            continue
        section = ""
        for number, line in _lines(path):
            if line.strip().startswith("["):
                section = line.strip().strip("[]")
            elif section == "main" and depth < PROFILE_DEPTH and (match := _INCLUDE.match(line)):
                included = [each for each in re.split(r"[\s,;]+", match[1]) if each and each not in seen]
                seen.update(included)
                waiting.extend((each, depth + 1) for each in included)
            elif section.startswith("sysctl"):
                for setting, value in _assignments(line):
                    yield Writer("TuneD", f"TuneD profile {name}, {path}:{number}", setting, value)


def _profile(roots: Roots, name: str) -> Path | None:
    for directory in (
        roots.etc / "tuned/profiles",
        roots.etc / "tuned",
        roots.usr / "lib/tuned/profiles",
        roots.usr / "lib/tuned",
    ):
        path = directory / name / "tuned.conf"
        if path.is_file():
            return path
    return None


def _of_kube_proxy(roots: Roots, cpus: int) -> Iterator[Writer]:
    for pid, arguments in kube_proxies(roots):
        keys, source = kube_proxy_keys(roots, pid, arguments)
        for setting, value, key in writes_of(keys, cpus):
            yield Writer("kube-proxy", f"kube-proxy (pid {pid}, {source})", setting, value, key)


def kube_proxies(roots: Roots) -> Iterator[tuple[int, list[str]]]:
    """Yield pid and command line of every kube-proxy that can be seen and runs in this network namespace.

    One in another, of a node in a container for instance, translates and writes nothing here. Where that cannot be
    told, it counts.
    """
    try:
        pids = sorted(int(path.name) for path in roots.proc.iterdir() if path.name.isdigit())
    except OSError:
        return
    for pid in pids:
        try:
            raw = (roots.proc / str(pid) / "cmdline").read_bytes()
        except OSError:
            continue
        arguments = raw.decode(errors="replace").rstrip("\0").split("\0")
        # By its own name, or as the first argument of a program that is many; `pidof kube-proxy` is none.
        many = arguments[1:2] == ["kube-proxy"] and any(argument.startswith("--") for argument in arguments)
        if (many or Path(arguments[0]).name == "kube-proxy") and not _is_elsewhere(roots.proc / str(pid)):
            yield pid, arguments


def _is_elsewhere(process: Path) -> bool:
    try:
        # Of the thread: it may be in another network namespace than its process.
        return (process / "ns" / "net").readlink() != Path("/proc/thread-self/ns/net").readlink()
    except OSError:
        return False


def kube_proxy_keys(roots: Roots, pid: int, arguments: list[str]) -> tuple[Mapping[str, str], str]:
    """Return the conntrack keys of one kube-proxy, and where they stand: its file, its flags, or its defaults."""
    file = config_file_in(arguments)
    if file:
        # The path is in its own mount namespace, where its ConfigMap is mounted.
        base = roots.proc / str(pid)
        path = base / "root" / file.lstrip("/") if file.startswith("/") else base / "cwd" / file
        try:
            with path.open(encoding="utf-8", errors="replace") as stream:
                return keys_in_config(stream.read(LARGEST_BYTES)), f"config {file}"
        except OSError:
            return {}, f"config {file} is out of reach, its defaults are shown"
    return keys_in_arguments(arguments), "flags and defaults"


def _of_ourselves(roots: Roots) -> Iterator[Writer]:
    try:
        journal = StateDirectory(roots).read_journal(read_boot_id(roots))
    except ConntrackOperatorError:
        return
    for setting, original in sorted(journal.originals.items()):
        value = original.ours[-1] if original.ours else None
        yield Writer("conntrack-operator", f"conntrack-operator, before which it was {original.value}", setting, value)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(LARGEST_BYTES)
    except OSError:
        return
    yield from enumerate(text.splitlines(), start=1)


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
