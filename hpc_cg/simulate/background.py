"""Writing while computing: one piece of work at a time in a thread beside the caller, at most one pending.

What follows a piece of work (``then``) runs in the caller's thread once the work is done, so a block counts only when
its file is there. An error of the work is raised where the caller meets it next: at the next piece, or at the end.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Background:
    """A context whose end waits for what is pending."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: tuple[Future, Callable[[], None]] | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.settle()
        finally:
            self._pool.shutdown()

    def __call__(self, work: Callable[[], object], then: Callable[[], None]) -> None:
        """Begin a piece of work, once the one before is done."""
        self.settle()
        self._pending = self._pool.submit(work), then

    def settle(self) -> None:
        """Wait for what is pending; raises what it raised."""
        if self._pending is not None:
            (future, then), self._pending = self._pending, None
            future.result()
            then()
