"""Diagnosis, fourth question: who else writes these settings? Pure. A value that two write never stays."""

from collections.abc import Iterator

from conntrack_operator.model.catalogue import PREFIX

from .draft import MAX
from .finding import Finding
from .symptoms import Symptoms, Writer

OURS = "conntrack-operator"


def findings_of_writers(symptoms: Symptoms) -> Iterator[Finding]:
    """Yield one finding for each setting that somebody writes; a warning where they disagree."""
    for setting in dict.fromkeys(writer.setting for writer in symptoms.writers):
        writers = [writer for writer in symptoms.writers if writer.setting == setting]
        yield _finding(setting, writers, symptoms.facts.sysctls.get(setting))


def _finding(setting: str, writers: list[Writer], now: int | None) -> Finding:
    name = setting.removeprefix(PREFIX)
    others = [writer for writer in writers if writer.kind != OURS]
    detail = " ".join(_words(writer) for writer in writers)
    # Several values of one kind are layers of one writer (a later file wins); several kinds take turns.
    wishes = {writer.kind: writer.value for writer in writers if writer.value is not None}
    if len(set(wishes.values())) > 1:
        return Finding(
            "warning",
            "WritersDisagree",
            f"{name} is written by {_list([writer.kind for writer in writers])}, with different values.",
            f"{detail} Now {_value(now)}.",
            f"Leave it to one of them: {removal_of(others)}.",
        )
    lower = [each for each in others if each.value is not None and now is not None and each.value < now]
    if setting == MAX and lower:
        return Finding(
            "warning",
            "LowerAtNextStart",
            f"{name} is {_value(now)}, but {lower[-1].kind} writes {_value(lower[-1].value)} when it next starts.",
            # Which of its versions lower it: kubernetes #103174, #120448, #142035.
            detail + " kube-proxy 1.37.2 and newer only raises it." * (lower[-1].kind == "kube-proxy"),
            f"Change it there, or leave it to a policy: {removal_of(lower)}.",
        )
    return Finding("info", "AlsoWritten", f"{name} is written by {_list([each.kind for each in writers])}.", detail)


def _words(writer: Writer) -> str:
    if writer.kind == OURS:
        return f"{_value(writer.value)} is from {writer.where}."
    what = f" ({writer.key})" if writer.key else ""
    return f"{writer.where}{what}: {_value(writer.value)}."


def removal_of(writers: list[Writer]) -> str:
    """Return how to make `writers` leave their setting alone, in words."""
    ways = []
    for writer in writers:
        if writer.kind == "kube-proxy":
            ways.append(_kube_proxy_removal(writer))
        else:
            ways.append(f"remove it from {writer.where}")
    return "; ".join(dict.fromkeys(ways))


def _kube_proxy_removal(writer: Writer) -> str:
    # maxPerCore 0 makes it ignore min too; a duration of 0 leaves the kernel's value alone.
    key = "conntrack.maxPerCore" if writer.setting == MAX else writer.key
    value = "false" if key.endswith("tcpBeLiberal") else "0s" if "imeout" in key else "0"
    return f"set {key}: {value} in kube-proxy's ConfigMap"


def _list(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"


def _value(value: int | None) -> str:
    return "unknown" if value is None else str(value)
