"""A plain RESP2 client: one socket, no pool, no retry, so that a test sees exactly what lockd said and when."""
import socket

from . import timing


class ReplyError(Exception):
    """An error reply; `code` is its first word."""

    def __init__(self, text):
        super().__init__(text)
        self.text = text
        self.code = text.split(' ', 1)[0]

    def __eq__(self, other):
        return isinstance(other, ReplyError) and self.text == other.text

    __hash__ = Exception.__hash__


def encode(*words):
    parts = [b'*%d\r\n' % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b'$%d\r\n%s\r\n' % (len(data), data))
    return b''.join(parts)


class Client:
    """client('GET', 'a') gives the reply and raises ReplyError; ask() returns the error instead."""

    def __init__(self, address, timeout=None):
        host, port = address.rsplit(':', 1)
        self.address = address
        self.socket = socket.create_connection((host, int(port)), timing.DEFAULT_S if timeout is None else timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b''

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __call__(self, *words):
        reply = self.ask(*words)
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def ask(self, *words):
        self.send(*words)
        return self.receive()

    def send(self, *words):
        self.socket.sendall(encode(*words))

    def raw(self, data):
        self.socket.sendall(data)

    def pipeline(self, commands):
        """All at once, then all replies."""
        self.socket.sendall(b''.join(encode(*c) for c in commands))
        return [self.receive() for _ in commands]

    def _more(self):
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError(f'{self.address} closed the connection')
        self.buffer += data

    def _line(self):
        while b'\r\n' not in self.buffer:
            self._more()
        line, self.buffer = self.buffer.split(b'\r\n', 1)
        return line

    def _bytes(self, count):
        while len(self.buffer) < count + 2:
            self._more()
        data, self.buffer = self.buffer[:count], self.buffer[count + 2:]
        return data

    def receive(self, timeout=None):
        """The next reply: str, int, list, None or ReplyError.  Bulk strings that are not UTF-8 come as bytes."""
        if timeout is not None:
            self.socket.settimeout(timeout)
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b'+':
            return rest.decode()
        if kind == b'-':
            return ReplyError(rest.decode())
        if kind == b':':
            return int(rest)
        if kind == b'$':
            if int(rest) < 0:
                return None
            data = self._bytes(int(rest))
            try:
                return data.decode()
            except UnicodeDecodeError:
                return data
        if kind == b'*':
            return None if int(rest) < 0 else [self.receive() for _ in range(int(rest))]
        raise AssertionError(f'not RESP2: {line!r}')

    def silent(self, seconds):
        """True if nothing arrives for that long."""
        if self.buffer:
            return False
        old = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            self._more()
            return False
        except socket.timeout:
            return True
        finally:
            self.socket.settimeout(old)

    def read_to_end(self):
        """Every byte until the other side closes."""
        try:
            while True:
                self._more()
        except ConnectionError:
            pass
        data, self.buffer = self.buffer, b''
        return data

    def close(self):
        self.socket.close()


def pairs(reply):
    """A RESP2 map (name, value, name, value ...) as a dictionary."""
    return None if reply is None else dict(zip(reply[0::2], reply[1::2]))
