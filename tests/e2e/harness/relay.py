"""A TCP relay between two programs that a test can cut.

cut():   nothing passes any more, but both sides keep their connections: what a dead network looks like.
drop():  every connection is closed and new ones are closed at once: what a dead machine's port looks like.
heal():  everything passes again; what was held back is delivered late, as a network may.
"""
import socket
import threading

from . import ports


class Relay:
    def __init__(self, target):
        self.target = target
        self.open = threading.Event()
        self.open.set()
        self.dropping = False
        self.closed = False
        self.pairs = []
        self.recorded = None
        self.lock = threading.Lock()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(('127.0.0.1', ports.port()))
        self.listener.listen(128)
        self.address = '127.0.0.1:%d' % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near):
        self.open.wait()
        if self.dropping or self.closed:
            near.close()
            return
        host, port = self.target.rsplit(':', 1)
        try:
            far = socket.create_connection((host, int(port)), 5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self.lock:
            self.pairs.append((near, far))
        stream = bytearray()
        if self.recorded is not None:
            self.recorded.append(stream)
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=(one, other, stream if one is near else None), daemon=True).start()

    def record(self):
        """From now on keep what is sent on each new connection; the list grows as they come."""
        self.recorded = []
        return self.recorded

    def _pump(self, source, sink, stream):
        try:
            while True:
                data = source.recv(65536)
                self.open.wait()
                if self.closed:
                    return
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                if stream is not None and self.recorded is not None:
                    stream += data
                sink.sendall(data)
        except OSError:
            for side in (source, sink):
                try:
                    side.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def cut(self):
        self.open.clear()

    def drop(self):
        self.dropping = True
        self._close_pairs()

    def heal(self):
        self.dropping = False
        self.open.set()

    def _close_pairs(self):
        with self.lock:
            for pair in self.pairs:
                for side in pair:
                    try:
                        side.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
            self.pairs = []

    def close(self):
        self.closed = True
        self.listener.close()
        self._close_pairs()
        self.open.set()
