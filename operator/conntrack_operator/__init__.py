"""conntrack-operator: sizes, spares and watches a node's connection-tracking table."""

__version__ = "0.2.0"
