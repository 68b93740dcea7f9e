"""The kept replies: append-only JSON lines, on disk before a reply is used, so that nothing is paid for twice.

A reply is found by the digest of everything that it depends on (see `request`). A folder holds one file a shard; all
of them are read, one is written, under a lock. A last line without end, left by a kill, is cut off.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import DataError
from .replies import Text


class Ledger:
    """Raises DataError if another process writes the same file, or a line in the middle is damaged."""

    def __init__(self, folder: Path, name: str, *, read_only: bool = False) -> None:
        self._replies: dict[str, dict[str, Any]] = {}
        self._attempts: dict[str, int] = {}
        self.spent = 0.0
        """Reported by the replies of all files."""
        self.uncertain = 0.0
        """At most: for calls whose reply was lost, or came without usage."""
        self._file: int | None = None
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open(folder / f"{name}.jsonl")
        for path in sorted(folder.glob("*.jsonl")):
            self._read(path)

    def find(self, key: str) -> dict[str, Any] | None:
        """The newest reply to the request of digest `key`, as `record` was given it, without the raw one."""
        return self._replies.get(key)

    def attempts(self, key: str) -> int:
        """How many replies to it are kept. Part of what makes a repeated request another one."""
        return self._attempts.get(key, 0)

    def record(self, entry: dict[str, Any]) -> None:
        """Append one entry; it is on the disk when this returns.

        An entry has `key` and `cost`; that of a reply has `reply` (text, finish, refusal), others are costs only.
        `uncertain` marks a cost that the endpoint did not report.
        """
        assert self._file is not None, "a ledger that was opened to be read"
        line = json.dumps(entry).encode() + b"\n"  # ASCII: halves of surrogate pairs stay as they came
        while line:  # a short write, then a full disk: the rest must not be lost silently
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self._take(entry)

    def close(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, path: Path) -> int:
        import fcntl

        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise DataError(f"{path}: expected a file of our own, got one that another run is writing") from None
        data = path.read_bytes()
        if (complete := data.rfind(b"\n") + 1) < len(data):
            os.ftruncate(file, complete)
            os.fsync(file)
        return file

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        lines = data[: data.rfind(b"\n") + 1].split(b"\n")  # another shard may be in the middle of a line
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                self._take(entry)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise DataError(
                    f"{path} line {number}: expected a kept reply, got something else; remove that line"
                ) from None

    def _take(self, entry: dict[str, Any]) -> None:
        cost = float(entry["cost"])
        if entry.get("uncertain"):
            self.uncertain += cost
        else:
            self.spent += cost
        if "reply" in entry:
            key, reply = str(entry["key"]), Text(**entry["reply"])
            self._replies[key] = {"reply": reply, "created": str(entry.get("created", ""))}
            self._attempts[key] = self._attempts.get(key, 0) + 1
