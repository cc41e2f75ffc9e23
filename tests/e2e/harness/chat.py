"""Demo chat servers, lockproxy in front of them, and users who speak to them."""
import asyncio
import os
import re
import socket

from . import ports, timing
from .process import Process, binary


class Chatd:
    """One demo chat server; `events()` is what its own log says, with CLOCK_BOOTTIME stamps."""

    def __init__(self, folder, name):
        self.name, self.folder = name, str(folder)
        self.address = ports.address()
        self.log = os.path.join(self.folder, f'chatd-{name}.events')
        self.process = None
        self.starts = 0

    def start(self):
        self.starts += 1
        self.process = Process(f'chatd-{self.name}.{self.starts}',
                               [binary('chatd'), '--listen', self.address, '--name', self.name, '--log', self.log],
                               self.folder)
        host, port = self.address.rsplit(':', 1)

        def answers():
            assert self.process.running(), self.process.text()
            try:
                socket.create_connection((host, int(port)), 1).close()
                return True
            except OSError:
                return False
        timing.wait_for(f'chatd {self.name} to listen', answers, every=0.005)
        return self

    def kill9(self):
        return self.process.kill9()

    def events(self):
        """[(ms, kind, {field: value})] in order."""
        found = []
        if not os.path.exists(self.log):
            return found
        with open(self.log) as file:
            for line in file:
                words = line.split()
                if len(words) >= 2 and re.fullmatch(r'[0-9.]+', words[0]):
                    fields = dict(w.split('=', 1) for w in words[2:] if '=' in w)
                    found.append((float(words[0]), words[1], fields))
        return found


class Proxy:
    """One lockproxy with one pool named chat.

    backends: [(name, address)] or [(name, address, {key: value})]; keys are those of the pool, with underscores.
    """

    def __init__(self, folder, name, lockd, backends, keys=('line ^JOIN ([^ ]+)',), options=None, **pool):
        self.name, self.folder = name, str(folder)
        self.lockd, self.backends, self.keys, self.pool = list(lockd), list(backends), list(keys), pool
        self.options = options or {}
        self.config = os.path.join(self.folder, f'{name}.conf')
        self.address = pool.pop('listen', None) or ports.address()
        self.process = None
        self.starts = 0

    @staticmethod
    def _text(value):
        if isinstance(value, bool):
            return 'true' if value else 'false'
        return f'"{value}"' if isinstance(value, str) else str(value)

    def write_config(self):
        def quoted(values):
            return '{' + ', '.join('"' + v.replace('\\', '\\\\') + '"' for v in values) + '}'
        lines = [f'name = "{self.name}"', f'lockd = {quoted(self.lockd)}']
        lines += [f'{k.replace("_", "-")} = {self._text(v)}' for k, v in self.options.items()]
        lines += ['pool chat {', f'  listen = "{self.address}"', f'  key = {quoted(self.keys)}']
        lines += [f'  {k.replace("_", "-")} = {self._text(v)}' for k, v in self.pool.items()]
        for name, address, *rest in self.backends:
            extra = ''.join(f' {k.replace("_", "-")} = {self._text(v)}' for k, v in (rest[0] if rest else {}).items())
            lines.append(f'  backend {name} {{ address = "{address}"{extra} }}'.replace('" ', '"\n    ').replace(' }', '\n  }'))
        lines.append('}')
        with open(self.config, 'w') as file:
            file.write('\n'.join(lines) + '\n')

    def start(self, wait=True):
        self.write_config()
        self.starts += 1
        self.process = Process(f'{self.name}.{self.starts}', [binary('lockproxy'), '--config', self.config], self.folder)
        if wait:
            self.process.wait_line(r'proxy listening')
            self.process.wait_line(r'lockd lease id=')
        return self

    def kill9(self):
        return self.process.kill9()

    def term(self):
        return self.process.term()

    def stop(self):
        self.process.stop()

    def cont(self):
        self.process.cont()


WELCOME = re.compile(r'^\* (\S+) welcomes (\S+) to (\S+)')


class User:
    """A chat user on a blocking socket."""

    def __init__(self, address, timeout=None):
        host, port = address.rsplit(':', 1)
        self.socket = socket.create_connection((host, int(port)), timing.DEFAULT_S if timeout is None else timeout)
        self.buffer = b''

    def say(self, line):
        self.socket.sendall(line.encode() + b'\n')

    def hear(self, timeout=None):
        """The next line; '' when the other side closed."""
        if timeout is not None:
            self.socket.settimeout(timeout)
        while b'\n' not in self.buffer:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b''
            if not data:
                return ''
            self.buffer += data
        line, self.buffer = self.buffer.split(b'\n', 1)
        return line.decode(errors='replace').rstrip('\r')

    def hear_until(self, pattern, timeout=None):
        while True:
            line = self.hear(timeout)
            assert line != '', f'closed before /{pattern}/ was heard'
            if re.search(pattern, line):
                return line

    def join(self, room, user):
        """Returns the name of the backend that welcomed us, '' if the connection was closed instead."""
        self.say(f'JOIN {room} {user}')
        while True:
            line = self.hear()
            if line == '':
                return ''
            match = WELCOME.match(line)
            if match and match.group(2) == user:
                return match.group(1)

    def close(self):
        self.socket.close()


def joined(address, room, user, attempts_s=None):
    """Connect and join until it works; (user, backend name)."""
    got = []

    def tried():
        try:
            who = User(address)
        except OSError:
            return False
        try:
            backend = who.join(room, user)
        except OSError:
            backend = ''
        if backend == '':
            who.close()
            return False
        got.append((who, backend))
        return True
    timing.wait_for(f'{user} to be welcomed in {room}', tried, attempts_s or timing.DEFAULT_S)
    return got[0]


class AsyncUser:
    """A chat user for tests with many of them."""

    def __init__(self, address, room, name):
        self.host, self.port = address.rsplit(':', 1)
        self.room, self.name = room, name
        self.reader = self.writer = self.backend = None

    async def connect(self):
        self.reader, self.writer = await asyncio.open_connection(self.host, int(self.port))

    async def join(self):
        """The backend that welcomed us; '' if we were closed."""
        self.writer.write(f'JOIN {self.room} {self.name}\n'.encode())
        while True:
            try:
                line = await self.reader.readline()
            except ConnectionError:
                line = b''
            if not line:
                return ''
            match = WELCOME.match(line.decode(errors='replace'))
            if match and match.group(2) == self.name:
                self.backend = match.group(1)
                return self.backend

    async def connect_and_join(self, timeout=30):
        async def both():
            await self.connect()
            return await self.join()
        return await asyncio.wait_for(both(), timeout * timing.SLOW)

    async def closed(self):
        """Returns when the other side has closed."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def close(self):
        if self.writer is not None:
            self.writer.close()


async def many(jobs, at_once=200):
    """Await many coroutines, so many at a time; results in their order."""
    gate = asyncio.Semaphore(at_once)

    async def one(job):
        async with gate:
            return await job
    return await asyncio.gather(*[one(job) for job in jobs])
