"""`kubectl conntrack retry`: have nodes that gave a change up try it again."""

import argparse
from datetime import UTC, datetime

from .rollouts import retrying
from .steering import add_policy, steer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_policy(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write it into the policy; return 0."""
    return steer(arguments, lambda policy: retrying(policy, datetime.now(UTC)))
