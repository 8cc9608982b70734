"""`kubectl conntrack pause`: stop a policy's rollout where it is."""

import argparse

from .rollouts import pausing
from .steering import add_policy, steer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_policy(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write it into the policy; return 0."""
    return steer(arguments, pausing)
