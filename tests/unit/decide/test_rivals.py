"""Who changed it: names, keys and remedies, as honest as the evidence."""

import pytest

from conntrack_operator.decide.drift import Drift
from conntrack_operator.decide.rivals import (
    UNKNOWN,
    Hidden,
    kind_of_rival,
    likely_flusher,
    likely_writer,
    sentence_for,
)
from conntrack_operator.decide.symptoms import Writer

MAX = "net.netfilter.nf_conntrack_max"
BUCKETS = "net.netfilter.nf_conntrack_buckets"
ESTABLISHED = "net.netfilter.nf_conntrack_tcp_timeout_established"
PROXY = Writer("kube-proxy", "kube-proxy (pid 7, config /c)", MAX, 262144, "conntrack.maxPerCore")
PROXY_TIMEOUT = Writer("kube-proxy", "kube-proxy (pid 7)", ESTABLISHED, 86400, "conntrack.tcpEstablishedTimeout")
FILE = Writer("sysctl.d", "/etc/sysctl.d/90-x.conf:3", MAX, 65536)
LATER = Writer("sysctl.d", "/etc/sysctl.d/99-y.conf:1", MAX, 65536)
TUNED = Writer("TuneD", "TuneD profile web, /etc/tuned/web/tuned.conf:9", MAX, 131072)
OURS = Writer("conntrack-operator", "conntrack-operator (was 1)", MAX, 262144)

WRITERS = {
    "exact value": (MAX, 65536, (PROXY, FILE), "likely by sysctl.d (/etc/sysctl.d/90-x.conf:3)"),
    "the later of two files": (MAX, 65536, (FILE, LATER), "likely by sysctl.d (/etc/sysctl.d/99-y.conf:1)"),
    "the process before the file": (
        MAX,
        65536,
        (Writer("kube-proxy", "p", MAX, 65536, "conntrack.min"), LATER),
        "likely by kube-proxy (conntrack.min in its ConfigMap or flags)",
    ),
    "TuneD": (MAX, 131072, (FILE, TUNED), f"likely by {TUNED.where}"),
    "another value": (MAX, 4711, (FILE,), "perhaps by sysctl.d (/etc/sysctl.d/90-x.conf:3)"),
    "value unknown": (
        MAX,
        4711,
        (Writer("kube-proxy", "p", MAX, None, "conntrack.maxPerCore"),),
        "perhaps by kube-proxy (conntrack.maxPerCore in its ConfigMap or flags)",
    ),
    "gone, not None": (MAX, None, (Writer("kube-proxy", "p", MAX, None, "k"),), "perhaps by kube-proxy (k in its"),
    "buckets are a quarter of kube-proxy's max": (
        BUCKETS,
        65536,
        (PROXY,),
        "likely by kube-proxy (conntrack.maxPerCore in its ConfigMap or flags)",
    ),
    "other buckets": (BUCKETS, 4096, (PROXY,), "perhaps by kube-proxy"),
    "another setting": (ESTABLISHED, 65536, (FILE, PROXY), UNKNOWN),
    "ourselves": (MAX, 262144, (OURS,), UNKNOWN),
    "nobody": (MAX, 1, (), UNKNOWN),
}


@pytest.mark.parametrize(("setting", "value", "writers", "words"), WRITERS.values(), ids=WRITERS)
def test_likely_writer(setting, value, writers, words):
    """Who writes exactly that is likely; who writes the setting at all, perhaps; else it is not known."""
    assert likely_writer(setting, value, writers).startswith(words)


SENTENCES = {
    "kube-proxy": (
        Drift(MAX, 1048576, 262144),
        (PROXY,),
        (
            "nf_conntrack_max was changed from 1048576 to 262144, likely by kube-proxy (conntrack.maxPerCore in its"
            " ConfigMap or flags); set conntrack.maxPerCore: 0 and conntrack.min: 0 in kube-proxy's ConfigMap"
        ),
    ),
    "kube-proxy's timeout": (
        Drift(ESTABLISHED, 3600, 86400),
        (PROXY_TIMEOUT,),
        (
            "nf_conntrack_tcp_timeout_established was changed from 3600 to 86400, likely by kube-proxy"
            " (conntrack.tcpEstablishedTimeout in its ConfigMap or flags); set conntrack.tcpEstablishedTimeout: 0s in"
            " kube-proxy's ConfigMap"
        ),
    ),
    "file": (
        Drift(MAX, 1048576, 65536),
        (FILE,),
        (
            "nf_conntrack_max was changed from 1048576 to 65536, likely by sysctl.d (/etc/sysctl.d/90-x.conf:3); remove"
            " it from /etc/sysctl.d/90-x.conf:3"
        ),
    ),
    "unknown": (
        Drift(MAX, 1048576, 1),
        (),
        (
            "nf_conntrack_max was changed from 1048576 to 1 by somebody unknown; find who writes it: grep -rs"
            " nf_conntrack_max /etc /usr/lib/sysctl.d /run/sysctl.d"
        ),
    ),
    "gone": (
        Drift(MAX, 1048576, None),
        (),
        (
            "nf_conntrack_max was changed from 1048576 to nothing by somebody unknown; find who writes it: grep -rs"
            " nf_conntrack_max /etc /usr/lib/sysctl.d /run/sysctl.d"
        ),
    ),
    "rule": (
        Drift("notrack/web", "TCP 80 Server", "absent"),
        (),
        'notrack/web was changed from "TCP 80 Server" to "absent"; see who changes nftables: nft monitor',
    ),
}


@pytest.mark.parametrize(("drift", "writers", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_sentence(drift, writers, sentence):
    """One sentence: what, from, to, by whom, and how to make it stop."""
    assert sentence_for(drift, writers) == sentence


CLOSE_WAIT = "net.netfilter.nf_conntrack_tcp_timeout_close_wait"
ICMP = "net.netfilter.nf_conntrack_icmp_timeout"
LOOK = "on the node look with conntrack-operator doctor, or grep -rs"
UNSEEN = f"by {UNKNOWN}: a pod sees neither the node's /etc nor its processes; {LOOK}"
MAX_REMEDY = "set conntrack.maxPerCore: 0 and conntrack.min: 0 in kube-proxy's ConfigMap"

HIDDEN = {
    "value and rules, the floor": (
        Drift(MAX, 1048576, 131072), Hidden(4, kube_proxy=True), "kube-proxy",
        f"likely by kube-proxy: its default for 4 CPUs is 131072 (conntrack.min); {MAX_REMEDY}",
    ),
    "value and rules, by CPUs": (
        Drift(MAX, 1048576, 262144), Hidden(8, kube_proxy=True), "kube-proxy",
        f"likely by kube-proxy: its default for 8 CPUs is 262144 (conntrack.maxPerCore); {MAX_REMEDY}",
    ),
    "capped since 1.36": (
        Drift(MAX, 4194304, 1048576), Hidden(64, kube_proxy=True), "kube-proxy",
        f"likely by kube-proxy: its default for 64 CPUs is 1048576 (conntrack.maxPerCore); {MAX_REMEDY}",
    ),
    "not capped before": (
        Drift(MAX, 4194304, 2097152), Hidden(64, kube_proxy=True), "kube-proxy",
        f"likely by kube-proxy: its default for 64 CPUs is 2097152 (conntrack.maxPerCore); {MAX_REMEDY}",
    ),
    "buckets": (
        Drift(BUCKETS, 16384, 32768), Hidden(1, kube_proxy=True), "kube-proxy",
        f"likely by kube-proxy: a quarter of its default max for 1 CPU is 32768 (conntrack.min); {MAX_REMEDY}",
    ),
    "established": (
        Drift(ESTABLISHED, 21600, 86400), Hidden(4, kube_proxy=True), "kube-proxy",
        ("likely by kube-proxy: its default is 86400 (conntrack.tcpEstablishedTimeout);"
        " set conntrack.tcpEstablishedTimeout: 0s in kube-proxy's ConfigMap"),
    ),
    "close_wait": (
        Drift(CLOSE_WAIT, 90, 3600), Hidden(4, kube_proxy=True), "kube-proxy",
        ("likely by kube-proxy: its default is 3600 (conntrack.tcpCloseWaitTimeout);"
        " set conntrack.tcpCloseWaitTimeout: 0s in kube-proxy's ConfigMap"),
    ),
    "the value alone": (
        Drift(MAX, 1048576, 131072), Hidden(4, kube_proxy=False), "unknown",
        ("perhaps by kube-proxy: its default for 4 CPUs is 131072 (conntrack.min), but its rules are not seen here;"
        f" {LOOK} nf_conntrack_max /etc"),
    ),
    "the rules alone": (
        Drift(MAX, 1048576, 4711), Hidden(4, kube_proxy=True), "unknown",
        ("perhaps by kube-proxy: its rules are here, but its default for 4 CPUs is 131072 (conntrack.min);"
        f" {LOOK} nf_conntrack_max /etc"),
    ),
    "neither": (Drift(MAX, 1048576, 4711), Hidden(4, kube_proxy=False), "unknown", f"{UNSEEN} nf_conntrack_max /etc"),
    "nothing of kube-proxy's": (
        Drift(ICMP, 10, 25), Hidden(4, kube_proxy=True), "unknown", f"{UNSEEN} nf_conntrack_icmp_timeout /etc",
    ),
    "gone": (Drift(MAX, 1048576, None), Hidden(4, kube_proxy=True), "unknown", f"{UNSEEN} nf_conntrack_max /etc"),
}  # fmt: skip


@pytest.mark.parametrize(("drift", "hidden", "kind", "words"), HIDDEN.values(), ids=HIDDEN)
def test_what_a_pod_can_tell(drift, hidden, kind, words):
    """Value and rules agree: likely, and counted as such; one of them: perhaps; none: where to look."""
    assert words in sentence_for(drift, hidden=hidden)
    assert kind_of_rival(drift, hidden=hidden) == kind


def test_a_writer_that_is_seen_comes_first():
    """What is known beats what is guessed."""
    hidden = Hidden(4, kube_proxy=True)
    assert sentence_for(Drift(MAX, 1, 65536), [FILE], hidden=hidden) == sentence_for(Drift(MAX, 1, 65536), [FILE])


WEB, FILTER, OUR = ("inet", "web"), ("inet", "filter"), ("inet", "conntrack_operator")
BEFORE = {WEB: 1, FILTER: 2, OUR: 3}
FLUSHERS = {
    "edited": ({WEB: 1, FILTER: 2, OUR: 3}, (), "rules or sets in it were edited"),
    "ours alone": ({WEB: 1, FILTER: 2}, (), "it alone was deleted"),
    "with another": ({FILTER: 2}, (), "it was deleted together with inet web"),
    "all": ({}, (), "the whole ruleset was flushed (nft flush ruleset"),
    "all, and made anew": ({WEB: 7, FILTER: 8}, (), "the whole ruleset was flushed (nft flush ruleset"),
    "by a configured reload": (
        {FILTER: 8},
        ("/etc/nftables.conf:3",),
        "the whole ruleset was flushed, likely by a reload of /etc/nftables.conf:3",
    ),
    "configured, but ours alone": ({WEB: 1, FILTER: 2}, ("/etc/nftables.conf:3",), "it alone was deleted"),
}


@pytest.mark.parametrize(("after", "configured", "words"), FLUSHERS.values(), ids=FLUSHERS)
def test_likely_flusher(after, configured, words):
    """What happened to the other tables tells a flush of everything from a deletion of ours."""
    assert likely_flusher(BEFORE, after, OUR, configured).startswith(words)


def test_ours_was_the_only_table():
    """Then a flush and a deletion look alike, and a flush is what people do."""
    assert "flushed" in likely_flusher({OUR: 3}, {}, OUR)
