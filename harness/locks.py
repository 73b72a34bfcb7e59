"""Locks on files, which end with the process that holds them, and name it."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from filelock import Timeout, UnixFileLock

from harness.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ESTALE, errno.EOPNOTSUPP)
"""Errors of file systems without locks: NFS without its lock service, Lustre mounted without `flock`."""


class LockHeldError(Exception):
    """Another process holds the lock: `on HOST, process ID`."""


class _RemovedError(Exception):
    """The locked file is no longer at its path: its previous holder removed it after it was opened here."""


def take_lock(path: Path, seconds: float = 0.0) -> UnixFileLock:
    """Lock `path`, which is made if it does not exist, and write the holder's process id and host into it.

    seconds: how long to wait for the lock.

    filelock's soft locks (files that merely exist) are not used: one left by a process that was killed on another
    host would block its cell for ever, because this host cannot tell whether that process still runs.

    Raises:
        LockHeldError: another process holds it.
        UserError: the file system has no locks.
    """

    def write_holder(descriptor: int) -> None:
        # NFS keeps a removed file under another name while it is open, so its link count does not show it.
        try:
            current = os.path.samestat(path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            current = False
        if not current:
            raise _RemovedError
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)

    while True:
        lock = UnixFileLock(
            path, timeout=seconds, blocking=seconds > 0, fallback_to_soft=False, on_acquired=write_holder
        )
        try:
            lock.acquire()
        except _RemovedError:
            continue
        except Timeout:
            if not path.exists():  # released between our opening and our locking it
                continue
            process, host = _holder(path)
            raise LockHeldError(f"on {host}, process {process}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(
                f"{path.parent}: the file system cannot lock files ({error.strerror}); choose a results folder "
                "on another one (--results), or mount it with locks (NFS: lock service; Lustre: -o flock)."
            ) from error
        return lock


def _holder(path: Path) -> tuple[str, str]:
    """Process id and host from a lock file, which its holder may be writing or removing."""
    try:
        process, host = path.read_text(errors="replace").split()
    except (FileNotFoundError, ValueError):
        return "unknown", "an unknown host"
    return process, host
