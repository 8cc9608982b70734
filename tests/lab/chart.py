"""What is generated around the chart: its README's table, its schema's words, its CRDs, and manifests/install.yaml.

`python -m tests.lab.chart` writes them; with `--check` it says which are out of step, and exits 1.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from tests.lab.helm import CHART, ROOT, Helm, program

BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
HEADER = """\
# Generated from charts/conntrack-operator by `make chart`. Do not edit: change the chart instead.
# What `helm install` does, without its test and its removal in order (charts/conntrack-operator/README.md).
apiVersion: v1
kind: Namespace
metadata:
  name: conntrack-system
  labels:
    # The agents need the host's network, two folders of the host and NET_ADMIN.
    pod-security.kubernetes.io/enforce: privileged
    pod-security.kubernetes.io/warn: privileged
    pod-security.kubernetes.io/audit: privileged
"""


def described(text: str) -> Iterator[tuple[str, str]]:
    """Yield each value that a comment `# --` describes: its path, and what the comment says."""
    path: list[tuple[int, str]] = []
    said: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"\s*# -- (.*)", line):
            said = [match[1]]
        elif said and (match := re.match(r"\s*# (.*)", line)):
            said.append(match[1])
        elif match := re.match(r"(\s*)([A-Za-z]\w*):", line):
            depth = len(match[1])
            path = [*(each for each in path if each[0] < depth), (depth, match[2])]
            if said:
                yield ".".join(name for _, name in path), " ".join(said)
            said = []


def value_at(values: Any, path: str) -> Any:
    """Return the value at `path`."""
    for name in path.split("."):
        values = values[name]
    return values


def table() -> str:
    """Return the table of all values, in Markdown."""
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    rows = [
        f"| `{path}` | `{json.dumps(value_at(values, path))}` | {what.replace('|', chr(92) + '|')} |"
        for path, what in described(text)
    ]
    return "\n".join(["| value | default | what it is |", "| --- | --- | --- |", *rows])


def schema() -> str:
    """Return the values' schema with what the comments say of each value, which editors show."""
    document = json.loads((CHART / "values.schema.json").read_text())
    for path, what in described((CHART / "values.yaml").read_text()):
        part = document
        for name in path.split("."):
            part = part["properties"][name]
        kept = {key: value for key, value in part.items() if key != "description"}
        part.clear()
        part.update({"description": what, **kept})
    return json.dumps(document, indent=2) + "\n"


def generated() -> dict[Path, str]:
    """Return every generated file of the chart itself as it should be."""
    readme = (CHART / "README.md").read_text()
    before, rest = readme.split(BEGIN)
    files = {CHART / "README.md": f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"}
    files[CHART / "values.schema.json"] = schema()
    for crd in sorted((ROOT / "crds").glob("*.yaml")):
        files[CHART / "files" / "crds" / crd.name] = crd.read_text()
    return files


def manifest(helm: Helm) -> str:
    """Return the chart's rendering for kubectl, which is no release of Helm's and says so."""
    text = helm.template("--no-hooks", "--set=crds.keep=false")
    return HEADER + text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl")


def settle(wanted: dict[Path, str], *, only_look: bool) -> bool:
    """Make files as they should be, or only say which are not; return whether all were."""
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)}{' is out of step: make chart' if only_look else ''}")
        if not only_look:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
    return not stale


def main() -> int:
    """Write, or check, and return the exit code."""
    only_look = "--check" in sys.argv[1:]
    inside = settle(generated(), only_look=only_look)
    # Then only: the manifest is made of the others.
    with tempfile.TemporaryDirectory() as folder:
        text = manifest(Helm(program(), Path(folder)))
    outside = settle({ROOT / "manifests" / "install.yaml": text}, only_look=only_look)
    return 0 if not only_look or (inside and outside) else 1


if __name__ == "__main__":
    sys.exit(main())
