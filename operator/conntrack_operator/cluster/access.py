"""How the agent reaches the API server: from inside a pod, or by a kubeconfig. Only what an agent needs.

The official client would do this too, at 25 MB on every node (docs/decisions/0002-dependencies.md).
"""

import base64
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from conntrack_operator.errors import Unsupported

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Access:
    """Where the API server is and how to be believed there. A token file is read anew for every request: it rotates."""

    server: str
    tls: ssl.SSLContext | None
    token: str = ""
    token_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers that say who we are. Raises Unsupported when the token file cannot be read."""
        token = self.token
        if self.token_file is not None:
            try:
                token = self.token_file.read_text(encoding="ascii").strip()
            except OSError as error:
                raise Unsupported(f"the token {self.token_file} cannot be read ({error.strerror})") from error
            except UnicodeDecodeError as error:
                raise Unsupported(f"the token {self.token_file} is none: it is no plain text") from error
        return {"Authorization": f"Bearer {token}"} if token else {}


def access_for(kubeconfig: str | None) -> Access:
    """Return the way in: `kubeconfig` when given, else the pod's service account, else $KUBECONFIG or ~/.kube/config.

    Raises Unsupported with the remedy when there is none.
    """
    if kubeconfig:
        return _from_kubeconfig(Path(kubeconfig))
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host and (SERVICE_ACCOUNT / "token").exists():
        host = f"[{host}]" if ":" in host else host
        tls = ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))
        return Access(f"https://{host}:{port}", tls, token_file=SERVICE_ACCOUNT / "token")
    # As a shell does, and unlike Path.home(), "~" stays what it is where nobody has a home.
    path = Path(os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config"))  # noqa: PTH111
    # os.path.exists: one in somebody else's home is not there for us.
    if os.path.exists(path):  # noqa: PTH110
        return _from_kubeconfig(path)
    raise Unsupported(
        "no way to the API server: not in a pod, and no kubeconfig; name one with --kubeconfig, or work without a"
        " cluster with --policy FILE"
    )


def _from_kubeconfig(path: Path) -> Access:
    import yaml  # noqa: PLC0415 - a pod never needs it, and the agent's memory is counted

    try:
        document = yaml.safe_load(path.read_bytes())
        context = _named(document["contexts"], document["current-context"], "context")
        cluster = _named(document["clusters"], context["cluster"], "cluster")
        user = _named(document["users"], context["user"], "user")
        server = cluster["server"].rstrip("/")
        _ = urlsplit(server).port, user.keys()  # both fail for what is none
    except OSError as error:
        raise Unsupported(f"the kubeconfig {path} cannot be read ({error.strerror}); check --kubeconfig") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Unsupported(f"the kubeconfig {path} is not one, or has no usable current-context; check it") from error
    if "exec" in user or "auth-provider" in user:
        raise Unsupported(
            f"the user in {path} logs in by a program, which the agent does not run; use a token or a certificate"
        )
    token_file = Path(user["tokenFile"]) if "tokenFile" in user else None
    tls = _tls(cluster, user, path) if server.startswith("https:") else None
    return Access(server, tls, user.get("token", ""), token_file)


def _named(entries: list[dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    for entry in entries:
        if entry["name"] == name:
            found: dict[str, Any] = entry[kind]
            return found
    raise ValueError(name)


def _tls(cluster: dict[str, Any], user: dict[str, Any], path: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=cluster.get("certificate-authority"), cadata=_decoded(cluster.get("certificate-authority-data"))
        )
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if "client-certificate-data" in user:
            with _in_memory(user["client-certificate-data"]) as cert, _in_memory(user["client-key-data"]) as key:
                context.load_cert_chain(cert.name, key.name)
        elif "client-certificate" in user:
            context.load_cert_chain(user["client-certificate"], user["client-key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unsupported(
            f"the certificates in the kubeconfig {path} cannot be used ({error}); make it anew"
        ) from error
    return context


def _decoded(data: str | None) -> str | None:
    return base64.b64decode(data, validate=True).decode() if data else None


class _in_memory:  # noqa: N801 - used as a function: a file that never touches a disk, by its path
    def __init__(self, data: str) -> None:
        self._fd = os.memfd_create("conntrack-operator")
        os.write(self._fd, base64.b64decode(data, validate=True))
        self.name = f"/proc/self/fd/{self._fd}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
