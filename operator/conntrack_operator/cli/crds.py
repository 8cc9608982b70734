"""The `crds` command: the CustomResourceDefinitions as YAML, printed or written as files.

`crds/` in the repository and the chart's copies are made by it, so the text is the same on every run: the order of
the models, no YAML aliases, lines of one width.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from conntrack_operator.errors import Unsupported
from conntrack_operator.model.schema import crds

HEADER = "# Generated from the models by `make crds`. Do not edit: change operator/conntrack_operator/model/ instead.\n"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        return True


def crd_files() -> dict[str, str]:
    """Return every CRD as file name and YAML text, with a header that says where it comes from."""
    return {
        name: HEADER + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        for name, document in crds().items()
    }


def write_crds(directory: Path) -> list[Path]:
    """Write every CRD into `directory`, made when missing, and return the files. Raises Unsupported when it cannot."""
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in crd_files().items():
            (directory / name).write_text(text, encoding="utf-8")
            written.append(directory / name)
    except OSError as error:
        raise Unsupported(
            f"cannot write the CRDs to {directory}: {error.strerror}; name another --directory"
        ) from error
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="write one file for each CRD into DIR instead of printing them (for example crds/)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the CRDs as one YAML stream for `kubectl apply -f -`, or write them with --directory. Returns 0."""
    if arguments.directory is None:
        print("---\n".join(crd_files().values()), end="")
    else:
        for path in write_crds(arguments.directory):
            print(path)
    return 0
