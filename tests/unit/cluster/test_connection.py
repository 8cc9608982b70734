"""The controller's connection: which configuration it finds, and what the API server's answers mean."""

import json
from pathlib import Path

import pytest
from tests.lab.programs import free_port

from conntrack_operator.cluster.connection import Connection, _complaint, read_credentials
from conntrack_operator.errors import Refused, Retry, Unsupported


def kubeconfig(folder: Path, server: str = "https://192.0.2.1:6443") -> str:
    """Write a kubeconfig with a token and return its path."""
    path = folder / "config"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path.write_text(json.dumps(document))
    return str(path)


def test_credentials_for_the_watches(tmp_path: Path) -> None:
    """The watches get the same server and token as the requests; the token without the word Bearer."""
    credentials = read_credentials(kubeconfig(tmp_path))
    assert (credentials.server, credentials.token) == ("https://192.0.2.1:6443", "secret")
    assert credentials.insecure


@pytest.mark.parametrize("text", [None, "", "garbage", "[1, 2", "{}"])
def test_a_bad_kubeconfig_is_one_sentence(tmp_path: Path, text: str | None) -> None:
    """A missing, empty or broken kubeconfig is named, with what to do, on one line."""
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Unsupported) as caught:
        read_credentials(str(path))
    assert str(path) in str(caught.value)
    assert "--kubeconfig" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "status"),
    [(Refused, status) for status in (400, 403, 413, 422)] + [(Retry, status) for status in (401, 409, 429, 500, 503)],
)
def test_what_an_answer_means(error: type[Exception], status: int) -> None:
    """What may pass is tried again; what will not is refused, with the API server's own reason."""
    said = _complaint("PATCH", "/x", status, json.dumps({"reason": "Why", "message": "because"}).encode())
    assert type(said) is error
    assert "PATCH /x" in str(said)
    assert "because" in str(said)
    assert getattr(said, "reason", "Why") == "Why"


def test_no_answer_is_a_retry(tmp_path: Path) -> None:
    """A port where nobody listens means: later."""
    connection = Connection(kubeconfig(tmp_path, f"https://127.0.0.1:{free_port()}"))
    with pytest.raises(Retry, match="does not answer GET /version"):
        connection.request("GET", "/version")
