"""Ctrl-C and SIGTERM: work in flight is kept before a command leaves."""

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal stopped the command after its work was kept.

    Args:
        number: the signal.
        message: what was kept, in words.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class HeldSignals:
    """A context that notes the first SIGINT or SIGTERM; the second one acts as usual.

    Args:
        enabled: False changes nothing. Threads other than the main one cannot hold signals either.

    Attributes:
        received: the signal that came, or 0.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.received = 0
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> "HeldSignals":
        for number in _SIGNALS if self.enabled else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as `nohup` and libraries want it
                self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)
        self._usual.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()


def leave_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, without a traceback: modules are being imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"difflens: interrupted\n")
    os._exit(128 + number)
