"""Ctrl-C during a run: the step in progress is finished and kept, then the run stops."""

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """Notes SIGINT while it is entered; a second one stops at once, as it would without this.

    Python hands signals to the main thread alone; elsewhere nothing is noted and nothing changes.
    """

    def __init__(self) -> None:
        self.noted = False
        """Whether the run should stop after this step."""

    def __enter__(self) -> "Interrupts":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.getsignal(signal.SIGINT)
            if self._before is signal.default_int_handler:  # whoever set another handler wants another behaviour
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._main and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
