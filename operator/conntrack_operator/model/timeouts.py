"""How long entries stay and how strictly TCP is tracked: the fields that each set one sysctl of the kernel.

The catalogue says which. Kernel defaults are those of net/netfilter/nf_conntrack_proto_*.c in 6.18; see the sysctls
of a fresh network namespace.
"""

from pydantic import StrictBool

from .base import Model
from .values import Seconds


class TCPTimeouts(Model):
    """How long an idle TCP connection stays in the table, by its state. An absent key is left as the node has it."""

    syn_sent: Seconds | None = None
    """A SYN was seen, no answer yet. Kernel default 2m."""
    syn_recv: Seconds | None = None
    """SYN and SYN-ACK were seen. Kernel default 1m."""
    established: Seconds | None = None
    """An open connection with no packets. Kernel default 5 days (432000); 24h is kube-proxy's.
    Keep it above the TCP keepalive time of the programs (2h by default), or idle pooled connections die."""
    fin_wait: Seconds | None = None
    """One side has closed. Kernel default 2m."""
    close_wait: Seconds | None = None
    """The other side has closed, this one not yet. Kernel default 1m; kube-proxy writes 1h, for connections that stay
    half closed."""
    last_ack: Seconds | None = None
    """Both have closed, the last ACK is missing. Kernel default 30s."""
    time_wait: Seconds | None = None
    """Closed, waiting for stray packets. Kernel default 2m. The usual reason for a table full of finished
    connections."""
    close: Seconds | None = None
    """A reset was seen. Kernel default 10s."""
    max_retrans: Seconds | None = None
    """After `nf_conntrack_tcp_max_retrans` retransmissions without an answer. Kernel default 5m."""
    unacknowledged: Seconds | None = None
    """Data was sent and is not acknowledged. Kernel default 5m."""


class UDPTimeouts(Model):
    """How long an idle UDP flow stays in the table. An absent key is left as the node has it."""

    unreplied: Seconds | None = None
    """Packets in one direction only, or a short exchange. Kernel default 30s."""
    stream: Seconds | None = None
    """Packets in both directions for more than two seconds. Kernel default 2m."""


class GRETimeouts(Model):
    """How long an idle GRE flow stays in the table. An absent key is left as the node has it."""

    unreplied: Seconds | None = None
    """Packets in one direction only. Kernel default 30s."""
    stream: Seconds | None = None
    """Packets in both directions. Kernel default 3m."""


class SCTPTimeouts(Model):
    """How long an idle SCTP association stays in the table, by its state. An absent key is left as the node has it."""

    closed: Seconds | None = None
    """No association, or it has ended. Kernel default 10s."""
    cookie_wait: Seconds | None = None
    """INIT was seen, no answer yet. Kernel default 3s."""
    cookie_echoed: Seconds | None = None
    """COOKIE ECHO was seen, no answer yet. Kernel default 3s."""
    established: Seconds | None = None
    """An open association with no packets. Kernel default 210s (5 days before 5.14)."""
    shutdown_sent: Seconds | None = None
    """SHUTDOWN was seen from the opening side. Kernel default 3s (300 ms before 5.17)."""
    shutdown_recd: Seconds | None = None
    """SHUTDOWN was seen from the other side. Kernel default 3s (300 ms before 5.17)."""
    shutdown_ack_sent: Seconds | None = None
    """SHUTDOWN ACK was seen, the last packet is missing. Kernel default 3s."""
    heartbeat_sent: Seconds | None = None
    """HEARTBEAT was seen on a further path, no answer yet. Kernel default 30s."""


class DCCPTimeouts(Model):
    """How long an idle DCCP connection stays in the table, by its state. Kernels from 6.17 on track no DCCP.

    There these keys are refused by the node (Unsupported). An absent key is left as the node has it.
    """

    request: Seconds | None = None
    """A request was seen, no answer yet. Kernel default 4m."""
    respond: Seconds | None = None
    """A response was seen. Kernel default 8m."""
    partopen: Seconds | None = None
    """The client has acknowledged the response. Kernel default 8m."""
    open: Seconds | None = None
    """An open connection with no packets. Kernel default 12h."""
    closereq: Seconds | None = None
    """The server has asked to close. Kernel default 64s."""
    closing: Seconds | None = None
    """A close was seen. Kernel default 64s."""
    timewait: Seconds | None = None
    """Closed, waiting for stray packets. Kernel default 4m."""


class Timeouts(Model):
    """How long idle entries stay in the table. An absent key is left as the node has it.

    Write 90s, 2m, 1h or 1h30m, or whole seconds as a bare number.
    """

    tcp: TCPTimeouts | None = None
    udp: UDPTimeouts | None = None
    icmp: Seconds | None = None
    """ICMP echo and the like. Kernel default 30s."""
    icmpv6: Seconds | None = None
    """ICMPv6 echo and the like. Kernel default 30s."""
    generic: Seconds | None = None
    """Every protocol without a tracker of its own. Kernel default 10m."""
    gre: GRETimeouts | None = None
    sctp: SCTPTimeouts | None = None
    dccp: DCCPTimeouts | None = None


class TCPBehaviour(Model):
    """How strictly TCP is tracked."""

    loose: StrictBool | None = None
    """Pick up connections that were open before tracking saw them (`nf_conntrack_tcp_loose`). Kernel default true."""
    be_liberal: StrictBool | None = None
    """Call only out-of-window resets INVALID (`nf_conntrack_tcp_be_liberal`). Kernel default false."""
