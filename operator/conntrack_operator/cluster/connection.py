"""The controller's way to the API server: where it is, who we are, and what its answers mean to us.

Built on the official client, which knows every way of logging in. It is used for its configuration and its
connections alone; objects travel as plain JSON, since a list of thousands of nodes is read in a tenth of the time
that the client's own models take.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import urllib3
import yaml
from kubernetes import client, config

from conntrack_operator.errors import LookAgain, Refused, Retry, Unsupported

CONNECT_SECONDS = 3.0
READ_SECONDS = 15.0
"""A hanging API server must not hold a worker for longer; a full list of 5,000 nodes takes about a second a page."""
LEAD_SECONDS = 0.5
"""How long before its fence closes a write must have been answered, or is given up."""

_TRY_AGAIN = frozenset({401, 408, 410, 429})
"""Answers that are worth another try: a token may have rotated, a long list may have been compacted before its last
page, the API server may be busy."""

_OF_NO_KUBECONFIG = (ValueError, TypeError, KeyError, AttributeError)
"""What the client raises over values of another type than it thinks of."""

JSON_PATCH = "application/json-patch+json"
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True)
class Credentials:
    """How to reach the API server and be believed there, for clients other than the official one."""

    server: str
    ca_path: str | None
    insecure: bool
    certificate_path: str | None
    private_key_path: str | None
    token: str | None
    username: str | None
    password: str | None
    proxy_url: str | None


def read_configuration(kubeconfig: str | None, context: str | None = None) -> client.Configuration:
    """Return the configuration from `kubeconfig` when given, else the pod's, else $KUBECONFIG or ~/.kube/config.

    `context` names one of a kubeconfig's instead of its current one. Raises Unsupported when there is none that can be
    read.
    """
    configuration = client.Configuration()
    try:
        if (
            kubeconfig is None
            and context is None
            and SERVICE_ACCOUNT_TOKEN.exists()
            and "KUBERNETES_SERVICE_HOST" in os.environ
        ):
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig, context=context, client_configuration=configuration, persist_config=False
            )
    except (config.ConfigException, yaml.YAMLError, OSError, RecursionError, *_OF_NO_KUBECONFIG) as error:
        where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        sentence = " ".join(str(error).split())
        raise Unsupported(
            f"no way to the API server: {where} cannot be used ({sentence}); name a kubeconfig with --kubeconfig"
        ) from error
    # Retrying is our queue's business; inside the client it would only hide how long things take.
    configuration.retries = urllib3.Retry(0, read=False)
    configuration.connection_pool_maxsize = 8
    return configuration


def read_credentials(kubeconfig: str | None) -> Credentials:
    """Return the same as read_configuration, read anew, as plain values. Raises Unsupported like it."""
    configuration = read_configuration(kubeconfig)
    bearer = configuration.get_api_key_with_prefix("BearerToken", alias="authorization") or ""
    return Credentials(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        # Of a kubeconfig's token the client says Bearer, of a pod's bearer (kubernetes/config/incluster_config.py).
        token=re.sub("^bearer ", "", bearer, flags=re.IGNORECASE) or None,
        username=configuration.username or None,
        password=configuration.password or None,
        proxy_url=configuration.proxy or None,
    )


class Fence(Protocol):
    """Says whether writes may be sent, and for how long."""

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Enter for the time of one write. Raises StandBack when none may begin."""

    def open_seconds(self) -> float:
        """Return how long writes may still take. Raises StandBack when that is too short for one."""


class Connection:
    """Requests to one API server, each step of them within its time. Safe to use from several threads.

    With a `fence`, whatever is not a GET is sent only while that is open, and not waited for longer.
    """

    def __init__(  # noqa: PLR0913 - each by its name
        self,
        kubeconfig: str | None,
        fence: Fence | None = None,
        *,
        context: str | None = None,
        user_agent: str = "conntrack-operator/controller",
        connect_seconds: float = CONNECT_SECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._api = client.ApiClient(read_configuration(kubeconfig, context))
        self._api.user_agent = user_agent
        self._fence = fence
        self._connect_seconds, self._read_seconds = connect_seconds, read_seconds

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any] | None:
        """Return the API server's answer as JSON, None when there is no such thing (404).

        Raises Retry when it did not answer or asked for patience, LookAgain when the object is not as it was thought to
        be, StandBack when the fence is closed, Refused with the answer's reason when it will not.
        """
        headers = {"Accept": "application/json"}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers |= {"Content-Type": content_type, "Content-Length": str(len(content))}
        fence = None if method == "GET" else self._fence
        try:
            _, url, headers, *_ = self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                auth_settings=["BearerToken"],
            )
            with fence.writing() if fence else contextlib.nullcontext():
                # The client's own pool: its request() takes no content that can still be withheld.
                answer = self._api.rest_client.pool_manager.request(
                    method,
                    url,
                    body=None if content is None else _withheld(content, fence),
                    headers=headers,
                    timeout=self._timeout(fence),
                    redirect=content is None,  # content is given out once
                )
        except (urllib3.exceptions.HTTPError, client.ApiException, OSError) as error:
            # What lies idle in the pool goes the same way as this line, and would cost as long to find out, one by one.
            self._api.rest_client.pool_manager.clear()
            raise Retry(f"the API server does not answer {method} {path}: {_one_line(error)}") from error
        if answer.status == 404:
            return None
        if answer.status >= 300:
            raise _complaint(method, path, answer.status, answer.data, content_type)
        return _object_in(answer.data, method, path)

    def _timeout(self, fence: Fence | None) -> urllib3.Timeout:
        total = self._connect_seconds + self._read_seconds
        if fence is not None:
            total = min(total, fence.open_seconds() - LEAD_SECONDS)
        return urllib3.Timeout(total=total, connect=self._connect_seconds, read=self._read_seconds)


def _withheld(content: bytes, fence: Fence | None) -> Iterator[bytes]:
    """Yield the content, unless the fence has closed: asked for once the connection stands and the headers are sent.

    Between that and the first look at the fence the process may have been frozen, or the handshake been slow. Of a
    request whose content does not come the API server does nothing.
    """
    if fence is not None:
        fence.open_seconds()
    yield content


def _object_in(data: bytes, method: str, path: str) -> dict[str, Any]:
    """Return the object or list in an answer. Whoever answers otherwise is no API server: a proxy, a login page."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise Retry(f"the API server's answer to {method} {path} is no JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        raise Retry(f"the answer to {method} {path} is no object of Kubernetes; is it an API server that answers?")
    return document


def _complaint(method: str, path: str, status: int, data: bytes, content_type: str = "") -> Retry | Refused:
    details: Any = None
    try:
        said = json.loads(data)
        reason, message, details = said.get("reason") or str(status), said.get("message") or "", said.get("details")
    except (ValueError, AttributeError):
        reason, message = str(status), data[:300].decode(errors="replace")
    sentence = f"the API server said {reason} to {method} {path}: {message}"
    if status == 409:
        return LookAgain(sentence)
    if status == 422 and content_type == JSON_PATCH and not (details or {}).get("kind"):
        # An invalid object is named in the details; of a patch that does not fit the object nothing is said (tried on
        # 1.37; NewGenericServerResponse in apimachinery's errors.go). Our patches replace parts that every object has,
        # so what did not fit was a test.
        return LookAgain(f"the object has changed meanwhile: {method} {path}")
    return Retry(sentence) if status in _TRY_AGAIN or status >= 500 else Refused(reason, sentence)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
