"""Frames of the protocol between nodes, made by hand: for tests that speak to a node's peer port as nobody should."""
import ctypes
import ctypes.util
import os
import re
import socket
import struct

from . import timing

_xxhash = ctypes.CDLL(ctypes.util.find_library('xxhash') or 'libxxhash.so.0')
_xxhash.XXH3_64bits.restype = ctypes.c_uint64
_xxhash.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]

_source = os.path.join(os.path.dirname(__file__), '..', '..', '..', 'lockd', 'core', 'frame.c')
VERSION = int(re.search(r'FRAME_VERSION = (\d+)', open(_source).read())[1])
HELLO, IDENTITY, PAXOS = 1, 2, 3
SEATS = 9


def frame(kind, fields, version=VERSION):
    rest = bytes([version, kind]) + fields
    return struct.pack('<IQ', len(rest) + 8, _xxhash.XXH3_64bits(rest, len(rest))) + rest


def hello(source, target, boot, version=VERSION):
    """Numbers count from 1 here as everywhere outside lockd."""
    return frame(HELLO, struct.pack('<HHQ', source - 1, target - 1, boot), version)


def identity(source, target, count, store, boot, cluster=0, stores=()):
    """A question, with the record of a cluster or without."""
    seats = list(stores) + [0] * (SEATS - len(stores))
    members = struct.pack('<QHH', 0, (1 << len(stores)) - 1, 0) + b''.join(struct.pack('<HQ', 0, s) for s in seats)
    return frame(IDENTITY, struct.pack('<BHHHQQQQBQ', 0, source - 1, target - 1, count, store, boot, 0, 0, 0, cluster) + members)


class Link:
    """One connection to a peer port; nothing is ever said back on it."""

    def __init__(self, address):
        host, port = address.rsplit(':', 1)
        self.socket = socket.create_connection((host, int(port)), timing.DEFAULT_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, *parts):
        """True if all of it could be sent."""
        try:
            self.socket.sendall(b''.join(parts))
            return True
        except OSError:
            return False

    def ended(self, timeout=timing.DEFAULT_S):
        """Wait until the node closes it."""
        self.socket.settimeout(timeout)
        try:
            return self.socket.recv(1) == b''
        except socket.timeout:
            return False
        except OSError:
            return True

    def open(self):
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1) != b''
        except BlockingIOError:
            return True
        except OSError:
            return False
