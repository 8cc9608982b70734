"""Whether the API server can be reached at all, as a probe asks it: on a fresh connection, with nothing kept."""

from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from .access import Access


def host_and_port(access: Access) -> tuple[str, int]:
    """Return where the API server is."""
    server = urlsplit(access.server)
    return server.hostname or "", server.port or (443 if server.scheme == "https" else 80)


def answers(access: Access, seconds: float) -> bool:
    """Tell whether the API server gives any HTTP answer, a refusal too, each step of it within `seconds`.

    A bare TCP handshake would not do: a stopped server's kernel goes on accepting. Raises OSError when it cannot be
    reached.
    """
    host, port = host_and_port(access)
    connection = (
        HTTPConnection(host, port, timeout=seconds)
        if access.tls is None
        else HTTPSConnection(host, port, timeout=seconds, context=access.tls)
    )
    try:
        connection.request("GET", urlsplit(access.server).path + "/version")
        connection.getresponse()
    except HTTPException:
        return False
    finally:
        connection.close()
    return True
