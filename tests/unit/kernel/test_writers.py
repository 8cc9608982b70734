"""Who else writes: sysctl.d, modprobe.d, TuneD, kube-proxy and ourselves, from trees of files as machines have them."""

import json

import pytest

from conntrack_operator.decide.symptoms import Writer
from conntrack_operator.kernel.roots import Roots
from conntrack_operator.kernel.writers import read_writers, setting_of

PREFIX = "net.netfilter.nf_conntrack_"


@pytest.fixture
def roots(tmp_path):
    """Return an empty machine."""
    for name in ("proc", "etc", "run", "usr/lib", "state"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("this-boot\n")
    return Roots(
        proc=tmp_path / "proc",
        state=tmp_path / "state",
        etc=tmp_path / "etc",
        usr=tmp_path / "usr",
        run=tmp_path / "run",
        sys=tmp_path / "sys",
    )


def put(path, text):
    """Write a file with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def written(roots, cpus=4):
    """Return (kind, short name, value) of every writer."""
    return [(each.kind, each.setting.removeprefix(PREFIX), each.value) for each in read_writers(roots, cpus)]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("net.netfilter.nf_conntrack_max", "max"),
        ("net/netfilter/nf_conntrack_max", "max"),
        ("-net.netfilter.nf_conntrack_max", "max"),
        ("net.nf_conntrack_max", "max"),
        ("net.ipv4.netfilter.ip_conntrack_max", "max"),
        ("net.ipv4.ip_conntrack_max", "max"),
        ("net.ipv4.netfilter.ip_conntrack_tcp_timeout_established", "tcp_timeout_established"),
        ("net.netfilter.nf_conntrack_nonsense", None),
        ("net.core.somaxconn", None),
        ("net.netfilter.nf_log.2", None),
    ],
)
def test_names(key, name):
    """Dots, slashes, the short name and those of old all mean today's key."""
    assert setting_of(key) == (PREFIX + name if name else "")


def test_nobody(roots):
    """A machine without any of it: nobody writes."""
    assert read_writers(roots, 4) == ()


def test_sysctl_files(roots):
    """File, line and value; comments and other keys left out; a file in /etc hides its namesake in /usr/lib."""
    first = put(
        roots.etc / "sysctl.d/90-tuning.conf",
        "# net.netfilter.nf_conntrack_max = 1\n; x\nvm.swappiness = 1\nnet.netfilter.nf_conntrack_max = 131072\n",
    )
    put(roots.usr / "lib/sysctl.d/90-tuning.conf", "net.netfilter.nf_conntrack_max = 7\n")
    second = put(roots.run / "sysctl.d/10-early.conf", "-net/netfilter/nf_conntrack_acct=1\n")
    assert read_writers(roots, 4) == (
        Writer("sysctl.d", f"{second}:1", f"{PREFIX}acct", 1),
        Writer("sysctl.d", f"{first}:4", f"{PREFIX}max", 131072),
    )


def test_sysctl_conf_is_read_once(roots):
    """99-sysctl.conf is a link to /etc/sysctl.conf on Debian: one writer, not two."""
    put(roots.etc / "sysctl.conf", "net.nf_conntrack_max = 500000\n")
    (roots.etc / "sysctl.d").mkdir()
    (roots.etc / "sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    assert written(roots) == [("sysctl.d", "max", 500000)]


def test_patterns_and_masks(roots):
    """A pattern writes every key it fits; a link to /dev/null hides a packaged file."""
    put(roots.etc / "sysctl.d/a.conf", "net.netfilter.nf_conntrack_udp_* = 40\n")
    put(roots.usr / "lib/sysctl.d/b.conf", "net.netfilter.nf_conntrack_max = 9\n")
    (roots.etc / "sysctl.d/b.conf").symlink_to("/dev/null")
    assert written(roots) == [("sysctl.d", "udp_timeout", 40), ("sysctl.d", "udp_timeout_stream", 40)]


def test_modprobe(roots):
    """hashsize of the module is the number of buckets."""
    path = put(roots.etc / "modprobe.d/ct.conf", "blacklist x\noptions nf_conntrack acct=1 hashsize=65536\n")
    assert read_writers(roots, 4) == (
        Writer("modprobe.d", f"{path}:2", f"{PREFIX}buckets", 65536, "options nf_conntrack hashsize"),
    )


def test_tuned(roots):
    """The active profiles and those they include are read, in /etc before /usr/lib; only [sysctl] counts."""
    put(roots.etc / "tuned/active_profile", "node-network extra\n")
    path = put(
        roots.etc / "tuned/profiles/node-network/tuned.conf",
        "[main]\ninclude=base, node-network\n[sysctl]\nnet.netfilter.nf_conntrack_max=1048576\n"
        "[vm]\nnet.nf_conntrack_max=1\n",
    )
    put(roots.usr / "lib/tuned/base/tuned.conf", "[sysctl]\nnet.netfilter.nf_conntrack_tcp_timeout_time_wait = 20\n")
    put(roots.usr / "lib/tuned/unused/tuned.conf", "[sysctl]\nnet.nf_conntrack_max=2\n")
    writers = read_writers(roots, 4)
    assert writers[0] == Writer("TuneD", f"TuneD profile node-network, {path}:4", f"{PREFIX}max", 1048576)
    assert [(each.setting.removeprefix(PREFIX), each.value) for each in writers] == [
        ("max", 1048576),
        ("tcp_timeout_time_wait", 20),
    ]


def process(roots, pid, *arguments):
    """Make a process of this command line."""
    put(roots.proc / f"{pid}/cmdline", "\0".join(arguments) + "\0")


def test_kube_proxy_by_config(roots):
    """Its file is read in its own file system, and the key that decides is named."""
    process(roots, 77, "/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf")
    put(roots.proc / "77/root/var/lib/kube-proxy/config.conf", "conntrack:\n  min: 1000\n  maxPerCore: 100\nmode: ''\n")
    writers = read_writers(roots, 4)
    assert writers[0] == Writer(
        "kube-proxy",
        "kube-proxy (pid 77, config /var/lib/kube-proxy/config.conf)",
        f"{PREFIX}max",
        1000,
        "conntrack.min",
    )
    assert [each.key for each in writers[1:]] == ["conntrack.tcpEstablishedTimeout", "conntrack.tcpCloseWaitTimeout"]


def test_kube_proxy_by_flags(roots):
    """Without a file its flags count; a binary that is many programs is one too; a search for it is none."""
    process(roots, 5, "/opt/kube", "kube-proxy", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s")
    process(roots, 6, "pidof", "kube-proxy")
    process(roots, 7, "")
    assert written(roots) == [("kube-proxy", "tcp_timeout_close_wait", 3600)]


def test_kube_proxy_out_of_reach(roots):
    """A configuration that cannot be read is said to be so."""
    process(roots, 5, "kube-proxy", "--config", "/x.conf")
    assert "config /x.conf is out of reach, its defaults are shown" in read_writers(roots, 4)[0].where


def test_ourselves(roots):
    """What this operator wrote since the boot, with what was there before."""
    setting = f"{PREFIX}max"
    journal = {"bootID": "this-boot", "originals": {setting: {"value": 65536, "ours": [262144, 524288]}}}
    put(roots.state / "journal.json", json.dumps(journal))
    where = "conntrack-operator, before which it was 65536"
    assert read_writers(roots, 4) == (Writer("conntrack-operator", where, setting, 524288),)


def test_damaged_files(roots):
    """Unreadable, binary and damaged files are passed over: doctor must not fall ill itself."""
    (roots.etc / "sysctl.d").mkdir()
    (roots.etc / "sysctl.d/a.conf").write_bytes(
        b"\xff\xfe net.nf_conntrack_max\x00 = \n = \n[\nnet.nf_conntrack_max = x\n"
    )
    (roots.etc / "sysctl.d/dir.conf").mkdir()
    put(roots.state / "journal.json", "{")
    assert written(roots) == [("sysctl.d", "max", None)]
