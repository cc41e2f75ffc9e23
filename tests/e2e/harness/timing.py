"""Clocks and the one way to wait for a state that nobody announces."""
import os
import threading
import time

# Slow binaries (sanitizers, strace) get more time; figures that a test promises are not scaled.
SLOW = float(os.environ.get('HOLDFAST_SLOW', '1'))
DEFAULT_S = 20 * SLOW
LONG = bool(os.environ.get('HOLDFAST_LONG'))


def boot_ms():
    """CLOCK_BOOTTIME in ms: the clock of every program here, so that times of different logs compare."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) * 1000


def wait_for(what, condition, timeout=DEFAULT_S, every=0.02):
    """Ask until `condition()` is true and return what it gave; an error that says `what` after `timeout` seconds."""
    pause = threading.Event()
    end = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f'waited {timeout:.0f} s in vain for {what}')
        pause.wait(every)


def pause(seconds, why):
    """Let real time pass because the property under test is about it; `why` is for the reader."""
    assert why
    threading.Event().wait(seconds)
