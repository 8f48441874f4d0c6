"""What a stage says, kept in memory and copied into a log.

The sentence that explains a failure comes through a pipe, so it arrives even where the disk is full and the log cannot
be written.
"""

from collections import deque
from pathlib import Path
from threading import Thread
from typing import IO

KEPT_LINES = 200
SHOWN_LINES = 15
LONGEST_LINE = 1 << 16
MARK = "hpc-cg: "
"""Stands before a sentence that was written for the user."""


class Tail:
    """Reads a stream to its end in a thread of its own.

    log   the file that the stream is copied into; None where it cannot be written
    """

    def __init__(self, stream: IO[bytes], log: Path):
        self.log: Path | None = log
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._sentences: dict[str, None] = {}
        self._stream = stream
        self._file = self._open(log)
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def message(self) -> str:
        """What a failed stage said: its own sentences where there are any, its last lines otherwise."""
        return "\n".join(self._sentences) or "\n".join(list(self._lines)[-SHOWN_LINES:]) or "no message"

    def close(self, patience_s: float = 2.0) -> None:
        """Wait for the end of the stream, but not for ever: a stray process may hold it open."""
        self._thread.join(patience_s)

    def _open(self, log: Path) -> IO[bytes] | None:
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            return log.open("wb", buffering=0)
        except OSError:
            self.log = None  # a log is a comfort: the stage itself says where it cannot write
            return None

    def _read(self) -> None:
        with self._stream:
            while raw := self._stream.readline(LONGEST_LINE):
                self._copy(raw)
                line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
                self._lines.append(line)
                if line.startswith(MARK) and len(self._sentences) < KEPT_LINES:
                    self._sentences[line.removeprefix(MARK)] = None
        if self._file is not None:
            self._file.close()

    def _copy(self, raw: bytes) -> None:
        if self._file is None or self.log is None:
            return
        try:
            self._file.write(raw)
        except OSError:
            self.log = None  # as above; the lines in memory go on
