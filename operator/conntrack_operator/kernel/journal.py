"""The files of the state directory: journal, confirmed settings, and the lock that keeps a node to one agent.

Every write is a new file, synced, renamed over the old one, and the directory synced: whatever happens, the old or the
new content is there, never a part. Nothing is written when nothing differs.
"""

import errno
import fcntl
import os
import time
from types import TracebackType
from typing import Self, TypeVar

from pydantic import ValidationError

from conntrack_operator.decide.remember import journal_of_next_boot
from conntrack_operator.errors import Refused, Retry, Unsupported
from conntrack_operator.model.base import Model
from conntrack_operator.model.journal import Confirmed, Journal

from .roots import Roots

LOCK_SECONDS = 3.0
"""How long to wait for the lock: what a killed agent began may still be ending."""

UNREADABLE = "JournalUnreadable"

_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EROFS: "mount it writable",
}
"""What helps against an error of the directory; root is what is missing otherwise."""

Kept = TypeVar("Kept", bound=Model)


class StateDirectory:
    """The one place we keep things. Use as a context manager: it holds the node's lock meanwhile.

    Raises Retry when another agent holds the lock, Unsupported when the directory cannot be made or written.
    """

    def __init__(self, roots: Roots) -> None:
        self._directory = roots.state
        self._lock_fd: int | None = None

    def __enter__(self) -> Self:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            # nft inherits it, so that the lock outlives a killed agent until the last transaction has ended.
            os.set_inheritable(self._lock_fd, True)  # noqa: FBT003 - positional only
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock(self._lock_fd)
        except OSError as error:
            os.close(self._lock_fd)
            self._lock_fd = None
            raise Retry(
                f"another conntrack-operator is at work on this node (it holds {self._directory}/lock); stop it, or"
                " leave the node to it"
            ) from error
        return self

    @staticmethod
    def _lock(descriptor: int) -> None:
        patience = time.monotonic() + LOCK_SECONDS
        while True:
            # Before it is tried: whoever was stopped for so long has not waited yet.
            is_last = time.monotonic() >= patience
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if is_last:
                    raise
                time.sleep(0.05)
            else:
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def read_journal(self, boot_id: str) -> Journal:
        """Return this boot's journal; an empty one when there is none, one with nothing but failures of another boot.

        Raises Refused (JournalUnreadable) when it is there and unreadable: without it the originals are unknown, so
        nothing may be written.
        """
        journal = self._read("journal.json", Journal)
        if journal is None:
            return Journal(boot_id=boot_id)
        return journal if journal.boot_id == boot_id else journal_of_next_boot(journal, boot_id)

    def write_journal(self, journal: Journal) -> None:
        """Keep `journal` safely; it is on the disk when this returns.

        One that says nothing is not written where there is none.
        """
        if journal == Journal(boot_id=journal.boot_id) and not (self._directory / "journal.json").exists():
            return
        self._write("journal.json", journal)

    def read_confirmed(self) -> Confirmed | None:
        """Return the settings last put in force on this node. Raises Refused (JournalUnreadable) like the journal."""
        return self._read("confirmed.json", Confirmed)

    def write_confirmed(self, confirmed: Confirmed | None) -> None:
        """Keep the settings now in force; None when there are none any more."""
        if confirmed is None:
            try:
                (self._directory / "confirmed.json").unlink(missing_ok=True)
            except OSError as error:
                raise self._unwritable(error) from error
        else:
            self._write("confirmed.json", confirmed)

    def _read(self, name: str, kind: type[Kept]) -> Kept | None:
        path = self._directory / name
        try:
            return kind.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Refused(
                UNREADABLE, f"{path} cannot be read ({error.strerror}); nothing is changed until it can be"
            ) from error
        except ValidationError as error:
            raise Refused(
                UNREADABLE,
                f"{path} is damaged or of another version, so the original values are unknown; nothing is changed until"
                " it is repaired, or removed when the values there are now may count as the original ones",
            ) from error

    def _write(self, name: str, content: Model) -> None:
        path, new = self._directory / name, self._directory / f".{name}.new"
        data = content.model_dump_json(by_alias=True, exclude_none=True).encode()
        try:
            if path.exists() and path.read_bytes() == data:
                return
            with new.open("wb") as file:
                # A directory that a kubelet made is open to everybody on the node; addresses are nobody's business.
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Unsupported:
        remedy = _REMEDIES.get(error.errno or 0, "run as root")
        return Unsupported(
            f"the state directory {self._directory} cannot be written ({error.strerror}); {remedy}, or name another"
            " with --state-dir"
        )
