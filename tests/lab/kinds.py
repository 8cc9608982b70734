"""Where the API server keeps what kubectl's words mean: `daemonset NAME -n NAMESPACE` as a path.

A test that polls by kubectl starts a program each time, which takes a core for a tenth of a second; over HTTP a look
costs a few milliseconds.
"""

from dataclasses import dataclass
from urllib.parse import urlencode

from tests.lab.fleet_api import Api

DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@dataclass(frozen=True)
class Kind:
    """One kind: `root` is the path of its group and version."""

    root: str
    plural: str
    namespaced: bool


class Kinds:
    """The kinds an API server knows, by each of their names; read again when one is asked for that was not there."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[str, Kind] = {}

    def path(self, word: str, *arguments: str) -> str:
        """Return the path of `kubectl get WORD ARGUMENTS`: a name, -n, -A, -l, --field-selector=..."""
        if word not in self._known:
            self._known = self._discover()
        if word not in self._known:
            raise RuntimeError(f"the API server has no kind {word}")
        kind, name, namespace, query = self._known[word], "", "default", {}
        rest = iter(arguments)
        for argument in rest:
            if argument == "-n":
                namespace = next(rest)
            elif argument == "-A":
                namespace = ""
            elif argument == "-l":
                query["labelSelector"] = next(rest)
            elif argument.startswith("--field-selector="):
                query["fieldSelector"] = argument.split("=", 1)[1]
            else:
                assert not argument.startswith("-"), argument
                name = argument
        within = f"/namespaces/{namespace}" if kind.namespaced and namespace else ""
        return f"{kind.root}{within}/{kind.plural}" + f"/{name}" * bool(name) + f"?{urlencode(query)}" * bool(query)

    def _discover(self) -> dict[str, Kind]:
        found: dict[str, Kind] = {}
        for start in ("/api", "/apis"):
            for group in self._api.request("GET", start, accept=DISCOVERY)["items"]:
                name = group["metadata"].get("name", "")
                for version in group["versions"]:
                    root = "/".join(filter(None, (start, name, version["version"])))
                    for each in version["resources"]:
                        kind = Kind(root, each["resource"], each["scope"] == "Namespaced")
                        for word in (each["resource"], each["singularResource"], *each.get("shortNames", ())):
                            found.setdefault(word, kind)  # the core group and preferred versions come first
        return found
