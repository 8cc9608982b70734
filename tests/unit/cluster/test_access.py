"""The agent's way to the API server: kubeconfigs that work, and one sentence for those that do not."""

import os

import pytest
import yaml

from conntrack_operator.cluster.access import Access, access_for
from conntrack_operator.errors import Unsupported

GOOD = {
    "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1/"}}],
    "users": [{"name": "u", "user": {"token": "secret"}}],
}


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch, tmp_path):
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def written(tmp_path, document):
    """Write a kubeconfig and return its path."""
    path = tmp_path / "kubeconfig"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return str(path)


def test_token(tmp_path, monkeypatch):
    """A token of a kubeconfig, named or from $KUBECONFIG."""
    path = written(tmp_path, GOOD)
    access = access_for(path)
    assert (access.server, access.headers()) == ("http://127.0.0.1:1", {"Authorization": "Bearer secret"})
    monkeypatch.setenv("KUBECONFIG", path)
    assert access_for(None) == access


def test_token_file_rotates(tmp_path):
    """A token file is read for every request; one that is gone is named."""
    file = tmp_path / "token"
    file.write_text("one\n")
    access = Access("https://x", None, token_file=file)
    assert access.headers() == {"Authorization": "Bearer one"}
    file.write_text("two")
    assert access.headers() == {"Authorization": "Bearer two"}
    file.write_bytes(b"\xff")
    with pytest.raises(Unsupported, match="no plain text"):
        access.headers()
    file.unlink()
    with pytest.raises(Unsupported, match="token"):
        access.headers()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "no usable current-context"),
        ("{", "no usable current-context"),
        ("- 1", "no usable current-context"),
        ({**GOOD, "current-context": "other"}, "no usable current-context"),
        ({**GOOD, "clusters": []}, "no usable current-context"),
        ({**GOOD, "users": [{"name": "u", "user": {"exec": {"command": "x"}}}]}, "logs in by a program"),
        (
            {
                **GOOD,
                "clusters": [{"name": "k", "cluster": {"server": "https://x", "certificate-authority-data": "!"}}],
            },
            "certificates",
        ),
        (
            {**GOOD, "clusters": [{"name": "k", "cluster": {"server": "https://x", "certificate-authority": "/none"}}]},
            "certificates",
        ),
        ({**GOOD, "users": [{"name": "u", "user": None}]}, "no usable current-context"),
        ({**GOOD, "clusters": [{"name": "k", "cluster": {"server": "https://x:port"}}]}, "no usable current-context"),
        (
            {**GOOD, "clusters": [{"name": "k", "cluster": {"server": "https://x", "certificate-authority-data": 5}}]},
            "certificates",
        ),
        ("[" * 5000, "no usable current-context"),
    ],
)
def test_unusable(tmp_path, document, words):
    """One sentence that names the file."""
    path = written(tmp_path, document)
    with pytest.raises(Unsupported, match=words) as refused:
        access_for(path)
    assert path in str(refused.value)


def test_nothing_there(tmp_path):
    """A missing file and no file at all."""
    with pytest.raises(Unsupported, match="check --kubeconfig"):
        access_for(str(tmp_path / "none"))
    with pytest.raises(Unsupported, match="--policy FILE"):
        access_for(None)


def test_a_home_of_somebody_else(tmp_path):
    """A home that we may not look into has no kubeconfig for us."""
    (tmp_path / ".kube").mkdir(mode=0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(Unsupported, match="--policy FILE"):
            access_for(None)
    finally:
        if root:
            os.seteuid(0)
