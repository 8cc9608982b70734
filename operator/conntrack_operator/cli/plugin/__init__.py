"""The kubectl plugin: `kubectl conntrack`. A person's view of the whole cluster, by their own kubeconfig and rights.

Nothing but its own entry point (`main`) imports this package: agent and controller never load it.
"""
