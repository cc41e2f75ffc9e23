"""Free TCP ports on loopback that no other test run takes at the same time.

They come from below the kernel's range for outgoing connections, so that no client socket can sit on one, and each
is held by a lock on a file from here to the end of the process: a second run on the machine chooses others.
"""
import fcntl
import os
import random
import socket
import tempfile

FIRST, LAST = 10000, 32000
_held = {}
_folder = os.path.join(tempfile.gettempdir(), 'holdfast-test-ports')


def _free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('127.0.0.1', port))
        except OSError:
            return False
    return True


def port():
    """One port that nobody listens on and no other test run will take."""
    os.makedirs(_folder, mode=0o777, exist_ok=True)
    for _ in range(10000):
        number = random.randint(FIRST, LAST)
        if number in _held:
            continue
        descriptor = os.open(os.path.join(_folder, str(number)), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        if _free(number):
            _held[number] = descriptor
            return number
        os.close(descriptor)
    raise AssertionError('no free port')


def address():
    return f'127.0.0.1:{port()}'
