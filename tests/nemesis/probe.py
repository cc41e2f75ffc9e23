"""One steady stream of writes through every node, open loop: what was acknowledged when, and is it still there?

The writes of a node are pipelined on one connection and sent every INTERVAL_S whether or not the earlier ones were
answered, so the time to the next acknowledged write is known to that precision.  Each has a key of its own.
"""
import errno
import os
import selectors
import socket
import threading
import time

from world import Client, ReplyError, now_us, timing

INTERVAL_S = 0.025
CONNECT_S, ANSWER_S, PAUSE_S = 0.4, 4.0, 0.05
VERIFY_BATCH = 400


class Stream:
    """The connection to one node."""

    def __init__(self, prober, node):
        self.prober, self.node = prober, node
        self.socket, self.up = None, False
        self.waiting = []      # (asked us, key) in order
        self.buffer, self.unsent = b'', b''
        self.since = 0.0       # of the connection's state
        self.count = 0

    def close(self):
        if self.socket is not None:
            self.prober.selector.unregister(self.socket)
            self.socket.close()
        self.prober.unknown += [key for _, key in self.waiting]
        self.socket, self.up, self.waiting, self.buffer, self.unsent = None, False, [], b'', b''
        self.since = time.monotonic()

    def tick(self):
        now = time.monotonic()
        if self.socket is None:
            if now - self.since >= PAUSE_S:
                self.dial()
        elif not self.up:
            if now - self.since > CONNECT_S:
                self.close()
        elif self.waiting and now_us() - self.waiting[0][0] > ANSWER_S * 1e6:
            self.close()
        else:
            self.count += 1
            key = f'p{self.node.number}.{self.count}'
            self.waiting.append((now_us(), key))
            value = str(self.count)
            self.unsent += b'*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n' % (len(key), key.encode(), len(value), value.encode())
            self.send()

    def dial(self):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = self.node.address.rsplit(':', 1)
        rc = self.socket.connect_ex((host, int(port)))
        self.prober.selector.register(self.socket, selectors.EVENT_WRITE, self)
        self.since = time.monotonic()
        if rc not in (0, errno.EINPROGRESS):
            self.close()

    def ready(self, mask):
        if self.socket is None:
            return
        if not self.up:
            if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
                self.close()
                return
            self.up = True
            self.prober.selector.modify(self.socket, selectors.EVENT_READ, self)
            return
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        if not data:
            self.close()
            return
        at = now_us()
        lines = (self.buffer + data).split(b'\r\n')
        self.buffer = lines.pop()
        for line in lines:
            if not self.waiting:
                self.prober.problems.append(f'{self.node} answered what nobody asked: {line!r}')
                self.close()
                return
            asked, key = self.waiting.pop(0)
            if line == b'+OK':
                self.prober.acknowledged(asked, at, key, self.node)
            elif line.startswith((b'-UNCERTAIN', b'-ERR')):
                self.prober.unknown.append(key)

    def send(self):
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent):]
        except BlockingIOError:
            pass
        except OSError:
            self.close()


class Disk(threading.Thread):
    """How long a write to the disk below takes that has nothing to do with us."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path = path
        self.waits = []        # (now us, seconds)
        self.began = None

    def run(self):
        with open(self.path, 'wb') as file:
            while True:
                self.began = time.monotonic()
                file.seek(0)
                file.write(bytes(4096))
                file.flush()
                os.fdatasync(file.fileno())
                took, self.began = time.monotonic() - self.began, None
                if took > 0.05:
                    self.waits.append((now_us(), took))
                timing.pause(0.05, 'a look at the disk now and then is enough')

    def stalled(self, begin_us):
        began = self.began
        return max([took for at, took in self.waits[-1000:] if at >= begin_us] +
                   [time.monotonic() - began if began else 0.0])


class Prober(threading.Thread):
    def __init__(self, nodes):
        super().__init__(daemon=True)
        self.selector = selectors.DefaultSelector()
        self.changed = threading.Condition()
        self.acks = []         # (asked, told, key, node) since the last verify, in the order told
        self.unknown = []
        self.problems = []
        self.stalls = []       # (now us, seconds): this thread got no processor for so long
        self.last = {}         # node: the asked time of the newest acknowledged write through it
        self.stopping = False
        self.streams = [Stream(self, node) for node in nodes]
        self.total = 0

    def run(self):
        next_at = time.monotonic()
        while not self.stopping:
            late = time.monotonic() - next_at
            if late > 0.05:
                self.stalls.append((now_us(), late))
            for key, mask in self.selector.select(max(0.0, next_at - time.monotonic())):
                key.data.ready(mask)
            if time.monotonic() >= next_at:
                next_at = max(next_at + INTERVAL_S, time.monotonic())
                for stream in self.streams:
                    stream.tick()

    def acknowledged(self, asked, told, key, node):
        with self.changed:
            self.acks.append((asked, told, key, node))
            self.last[node] = asked
            self.total += 1
            self.changed.notify_all()

    def first_since(self, mark_us, timeout):
        """When the first acknowledged write that was asked for at `mark_us` or later was told; None in vain."""
        end = time.monotonic() + timeout
        at = 0
        with self.changed:
            while True:
                while at < len(self.acks):
                    if self.acks[at][0] >= mark_us:
                        return self.acks[at][1]
                    at += 1
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self.changed.wait(left)

    def wait_all(self, nodes, mark_us, timeout):
        """Wait until a write asked for since then was acknowledged through every one of `nodes`; those it was not."""
        end = time.monotonic() + timeout
        with self.changed:
            while True:
                left_out = [node for node in nodes if self.last.get(node, 0) < mark_us]
                left = end - time.monotonic()
                if not left_out or left <= 0:
                    return left_out
                self.changed.wait(left)

    def longest_silence(self, begin_us, end_us):
        """The longest time within begin..end in which no write was acknowledged, in us."""
        with self.changed:
            times = sorted(told for _, told, _, _ in self.acks if begin_us <= told <= end_us)
        edges = [begin_us, *times, end_us]
        return max(b - a for a, b in zip(edges, edges[1:]))

    def stalled(self, begin_us):
        """The longest time since then for which this machine did not let us work, in s."""
        return max([late for at, late in self.stalls[-1000:] if at >= begin_us], default=0.0)

    def verify(self, address):
        """Every acknowledged write is there; then they are deleted.  Returns how many there were and what was lost."""
        with self.changed:
            acks, self.acks = self.acks, []
            unknown, self.unknown = self.unknown, []
        keys = [key for _, _, key, _ in acks]
        lost = []
        for at in range(0, len(keys), VERIFY_BATCH):
            some = keys[at:at + VERIFY_BATCH]
            for key, reply in zip(some, self.insist(address, [('GET', key) for key in some])):
                if reply != key.split('.')[1]:
                    lost.append(f'{key} is {reply}')
        every = keys + unknown
        for at in range(0, len(every), VERIFY_BATCH):
            self.insist(address, [('DEL', *every[at:at + VERIFY_BATCH])])
        return len(keys), lost

    def insist(self, address, commands):
        """The replies to commands that may as well run twice."""
        replies = []

        def answered():
            try:
                with Client(address, 10) as client:
                    replies[:] = client.pipeline(commands)
            except OSError:
                return False
            return not any(isinstance(reply, ReplyError) for reply in replies)
        timing.wait_for(f'{commands[0][0]} to be answered by {address}: {replies[:1]}', answered, 20)
        return replies

    def stop(self):
        self.stopping = True
        self.join(5)


