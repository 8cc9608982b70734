"""`kubectl conntrack resume`: let a paused rollout go on."""

import argparse

from .rollouts import resuming
from .steering import add_policy, steer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_policy(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write it into the policy; return 0."""
    return steer(arguments, resuming)
