"""The controller's way to the API server: where it is, who we are, and what its answers mean to us.

Built on the official client, which knows every way of logging in. It is used for its configuration and its
connections alone; objects travel as plain JSON, since a list of thousands of nodes is read in a tenth of the time
that the client's own models take.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config

from conntrack_operator.errors import Refused, Retry, Unsupported

CONNECT_SECONDS = 3.0
READ_SECONDS = 15.0
"""A hanging API server must not hold a worker for longer; a full list of 5,000 nodes takes about a second a page."""

_TRY_AGAIN = frozenset({401, 408, 409, 410, 429})
"""Answers that are worth another try: a token may have rotated, a write may have crossed another, a long list may have
been compacted before its last page."""

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


def read_configuration(kubeconfig: str | None) -> client.Configuration:
    """Return the configuration from `kubeconfig` when given, else the pod's, else $KUBECONFIG or ~/.kube/config.

    Raises Unsupported when there is none that can be read.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig is None and SERVICE_ACCOUNT_TOKEN.exists() and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig, client_configuration=configuration, persist_config=False
            )
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
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
        token=bearer.removeprefix("Bearer ") or None,
        username=configuration.username or None,
        password=configuration.password or None,
        proxy_url=configuration.proxy or None,
    )


class Connection:
    """Requests to one API server. Safe to use from several threads."""

    def __init__(self, kubeconfig: str | None) -> None:
        self._api = client.ApiClient(read_configuration(kubeconfig))
        self._api.user_agent = "conntrack-operator/controller"

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

        Raises Retry when it did not answer or asked for patience, Refused with the answer's reason when it will not.
        """
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            parts = self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = self._api.call_api(*parts, _request_timeout=(CONNECT_SECONDS, READ_SECONDS))
            data = answer.read()  # type: ignore[no-untyped-call]
        except (urllib3.exceptions.HTTPError, client.ApiException, OSError) as error:
            raise Retry(f"the API server does not answer {method} {path}: {_one_line(error)}") from error
        if answer.status == 404:
            return None
        if answer.status >= 300:
            raise _complaint(method, path, answer.status, data)
        try:
            document: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise Retry(f"the API server's answer to {method} {path} is not JSON") from error
        return document


def _complaint(method: str, path: str, status: int, data: bytes) -> Retry | Refused:
    try:
        said = json.loads(data)
        reason, message = said.get("reason") or str(status), said.get("message") or ""
    except (ValueError, AttributeError):
        reason, message = str(status), data[:300].decode(errors="replace")
    sentence = f"the API server said {reason} to {method} {path}: {message}"
    return Retry(sentence) if status in _TRY_AGAIN or status >= 500 else Refused(reason, sentence)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
