"""Prometheus' text format, version 0.0.4, written by hand. Pure.

Why not by prometheus_client: docs/decisions/0015-metrics.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "conntrack_operator_"

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Sample:
    """One value, with its labels. `suffix` is that of a histogram's parts: _bucket, _sum, _count."""

    value: float
    labels: Mapping[str, str]
    suffix: str = ""


@dataclass(frozen=True)
class Family:
    """All samples of one metric. One without samples is not written."""

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]

    def lines(self) -> Iterable[str]:
        """Yield its lines."""
        if not self.samples:
            return
        yield f"# HELP {self.name} {_escaped(self.help)}"
        yield f"# TYPE {self.name} {self.kind}"
        for sample in self.samples:
            labels = ",".join(f'{name}="{_escaped(value, quote=True)}"' for name, value in sample.labels.items())
            braces = f"{{{labels}}}" if labels else ""
            yield f"{self.name}{sample.suffix}{braces} {_number(sample.value)}"


def exposition(families: Iterable[Family]) -> str:
    """Return what a scrape is answered with."""
    return "".join(f"{line}\n" for family in families for line in family.lines())


def gauge(name: str, words: str, value: float | None) -> Family:
    """Return a gauge without labels; None is a value that is not known, and makes no sample."""
    return Family(PREFIX + name, "gauge", words, () if value is None else (Sample(value, {}),))


def counter(name: str, words: str, value: float | None) -> Family:
    """Return a counter without labels; None as for a gauge."""
    return Family(f"{PREFIX}{name}_total", "counter", words, () if value is None else (Sample(value, {}),))


def one_of(name: str, words: str, label: str, values: Iterable[str], current: str | None) -> Family:
    """Return a gauge for each of `values`: 1 for the `current` one, 0 for the others."""
    return gauges(name, words, (label,), {(value,): value == current for value in values})


def gauges(name: str, words: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Family:
    """Return a gauge with labels; `values` has their values as keys."""
    return Family(PREFIX + name, "gauge", words, _samples(labels, values))


def counters(name: str, words: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Family:
    """Return a counter with labels; `values` has their values as keys."""
    return Family(f"{PREFIX}{name}_total", "counter", words, _samples(labels, values))


def _samples(labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> tuple[Sample, ...]:
    return tuple(Sample(value, dict(zip(labels, key, strict=True))) for key, value in sorted(values.items()))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
