"""A journal file for studies that is never left damaged, however a process ends and whoever else writes."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

FIRST = b'{"op_code":'
"""What every line of a journal starts with."""


class Journal(JournalFileBackend):
    """Optuna's journal, with a lock that the system takes back from a dead process, and lines written whole or not."""

    def __init__(self, path: Path) -> None:
        """Open or create a journal; raises OSError, or ValueError for a file of another kind."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("a folder or a device")
        super().__init__(str(path.resolve()))
        with self._locked("r+b") as file:
            head = file.read(len(FIRST))
            if not FIRST.startswith(head) and head != FIRST:
                raise ValueError("a file of another kind")
            _drop_half_a_line(file)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or nothing."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._locked("ab") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while lines:
                    lines = lines[file.write(lines) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise

    @contextmanager
    def _locked(self, mode: str) -> Iterator[Any]:
        with open(self._file_path, mode, buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file gives it back
            yield file


def _drop_half_a_line(file: Any) -> None:
    """A process that was killed may have left the start of a line at the end."""
    size = end = file.seek(0, os.SEEK_END)
    block = b""
    while end and b"\n" not in block:
        start = max(0, end - 65_536)
        file.seek(start)
        block, end = file.read(end - start), start
    whole = end + block.rfind(b"\n") + 1
    if whole < size:
        file.truncate(whole)
