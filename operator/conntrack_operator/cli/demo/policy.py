"""The policies the demo applies: manifests/examples/dns-server.yaml, and one that would do harm.

The example is kept here too, since a wheel has no manifests; tests/unit/cli/demo/test_policy.py holds the two together.
"""

EXAMPLE = "manifests/examples/dns-server.yaml"

TEXT = """\
# A name server: every query is a flow of two packets, and each would sit in the table for 30 s or more.
#
# For nodes where the server itself listens on port 53 of the host, both protocols. Not for pods behind a ClusterIP: NAT
# takes the queries there, and it needs tracking.
apiVersion: conntrack-operator.io/v1alpha1
kind: ConntrackPolicy
metadata:
  name: dns-server
spec:
  mode: Enforce
  nodeSelector:
    matchLabels:
      example.com/role: dns
  notrack:
    rules:
      - name: dns-udp
        protocol: UDP
        ports: [53]
        side: Server
      - name: dns-tcp
        protocol: TCP
        ports: [53]
        side: Server
"""

HARMFUL = """\
apiVersion: conntrack-operator.io/v1alpha1
kind: ConntrackPolicy
metadata:
  name: web
spec:
  mode: Enforce
  nodeSelector:
    matchLabels:
      example.com/role: dns
  trial:
    timeoutSeconds: 10
    soakSeconds: 0
  notrack:
    rules:
      - name: web
        ports: [80]
"""
"""On the demo's stage, port 80 is translated."""

FORCED = HARMFUL.replace("  notrack:\n", "  notrack:\n    onConflict: Force\n")
"""The same, by somebody who knows better."""
