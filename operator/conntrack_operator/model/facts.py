"""Facts: what one machine is and has, as numbers. Decisions are functions of a policy and these.

The world side reads them (`kernel.facts`); `plan --facts FILE` replaces them, so that a plan can be made for a
machine one is not on.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .base import Model

DEFAULT_ENTRY_BYTES = 256
"""Slab object size of struct nf_conn, read from /proc/slabinfo where that can be read. Tried on 6.18: 256."""


class Facts(Model):
    """What a plan needs to know of a machine. `sysctls` maps full dotted names to values as the kernel shows them."""

    memory_bytes: Annotated[int, Field(ge=1)]
    """MemTotal of /proc/meminfo, in bytes."""
    cpus: Annotated[int, Field(ge=1)]
    """CPUs online."""
    word_bits: Literal[32, 64] = 64
    """Bits of a kernel pointer."""
    kernel: str
    """Release, as `uname -r` prints it."""
    entries: Annotated[int, Field(ge=0)] = 0
    """Entries in the table of this network namespace now."""
    sysctls: dict[str, Annotated[int, BeforeValidator(int)]]
    """Current values of the nf_conntrack_* keys this machine has. Empty when nf_conntrack is not loaded."""
    page_bytes: Annotated[int, Field(ge=1)] = 4096
    """Size of a memory page; the kernel rounds the number of buckets up to a page of them."""
    entry_bytes: Annotated[int, Field(ge=1)] = DEFAULT_ENTRY_BYTES
    """Slab bytes of one entry."""
    initial_namespace: bool = True
    """Whether this is the initial network namespace, the only one where sizes can be written."""
