"""Clients that write and read all the time and remember what they were told, to find out later who lied.

Each worker owns its keys, so every answer can be checked on the spot: a read gives the last acknowledged write, or
one whose outcome was never told; what was said not to have run must never appear.
"""
import random
import threading
import time

from . import timing
from .resp import Client, ReplyError

NOT_RUN = ('CLUSTERDOWN', 'LOADING', 'BUSY', 'DISKFULL', 'READONLY')


class Worker(threading.Thread):
    def __init__(self, load, number):
        super().__init__(daemon=True)
        self.load, self.number = load, number
        self.random = random.Random(load.seed * 1000 + number)
        self.key = f'load:{number}'
        self.counter = f'load:count:{number}'
        self.value = 0          # what the key holds, unless one of `unknown` has run since
        self.unknown = set()    # writes whose outcome nobody told: each may still take effect, once, at any time
        self.count_low = 0      # acknowledged INCRs
        self.count_unknown = 0  # INCRs whose outcome we do not know
        self.writes = 0
        self.next = 0
        self.client = None

    def run(self):
        try:
            while not self.load.stopping.is_set():
                if self.client is None and not self._connect():
                    self.load.stopping.wait(0.01)
                    continue
                self._step()
        except Exception as error:  # a test must hear of it, whatever it is
            self.load.fault(f'worker {self.number}: {error!r}')

    def _connect(self):
        try:
            self.client = Client(self.random.choice(self.load.addresses), 15 * timing.SLOW)
            return True
        except OSError:
            return False

    def _lost(self):
        if self.client is not None:
            self.client.close()
        self.client = None

    def _ask(self, *words):
        """The reply, or None if nobody knows whether it ran; raises nothing."""
        begin = time.monotonic()
        try:
            reply = self.client.ask(*words)
        except (OSError, ConnectionError):
            self._lost()
            return None
        self.load.slowest = max(self.load.slowest, time.monotonic() - begin)
        if isinstance(reply, ReplyError) and reply.code in NOT_RUN:
            self._lost()  # try another node; this one said that nothing happened
            return reply
        if isinstance(reply, ReplyError) and reply.code == 'UNCERTAIN':
            return None
        return reply

    def _step(self):
        kind = self.random.randrange(4)
        if kind == 0:
            self._write()
        elif kind == 1:
            self._count()
        else:
            self._read()

    def _write(self):
        self.next += 1
        value = self.next
        reply = self._ask('SET', self.key, f'{self.number}.{value}')
        if reply == 'OK':
            self.value = value
            self.writes += 1
            self.load.acknowledged(self.number)
        elif reply is None:
            self.unknown.add(value)
        elif not isinstance(reply, ReplyError) or reply.code not in NOT_RUN:
            self.load.fault(f'SET answered {reply!r}')

    def _count(self):
        reply = self._ask('INCR', self.counter)
        if isinstance(reply, int):
            if not self.count_low < reply <= self.count_low + self.count_unknown + 1:
                self.load.fault(f'INCR gave {reply} after {self.count_low} acknowledged, {self.count_unknown} unknown')
            self.count_unknown -= reply - self.count_low - 1
            self.count_low = reply
            self.writes += 1
            self.load.acknowledged(self.number)
        elif reply is None:
            self.count_unknown += 1
        elif not isinstance(reply, ReplyError) or reply.code not in NOT_RUN:
            self.load.fault(f'INCR answered {reply!r}')

    def _check_read(self, reply):
        if reply is None:
            value = 0
        else:
            owner, number = reply.split('.')
            if int(owner) != self.number:
                self.load.fault(f'worker {self.number} got the reply of {owner}')
                return
            value = int(number)
        if value == self.value:
            return
        if value not in self.unknown:
            self.load.fault(f'{self.key} holds {value}; acknowledged {self.value}, unknown {sorted(self.unknown)}')
            return
        self.unknown.remove(value)
        self.value = value

    def _read(self):
        if self.client is None:
            return
        try:
            reply = self.client.ask('GET', self.key)
        except (OSError, ConnectionError):
            self._lost()
            return
        if isinstance(reply, ReplyError):
            if reply.code not in NOT_RUN and reply.code != 'UNCERTAIN':
                self.load.fault(f'GET answered {reply!r}')
            self._lost()
            return
        self._check_read(reply)

    def settle(self, client):
        """After the faults: what is stored must be what we were told."""
        self._check_read(client('GET', self.key))
        count = int(client('GET', self.counter) or 0)
        if not self.count_low <= count <= self.count_low + self.count_unknown:
            self.load.fault(f'{self.counter} is {count}: {self.count_low} acknowledged, {self.count_unknown} unknown')
        self.count_low, self.count_unknown = count, 0


class Load:
    """with Load(cluster.addresses, workers=8) as load: ...faults...; load.settle(client)"""

    def __init__(self, addresses, workers=8, seed=None):
        self.addresses = list(addresses)
        self.seed = random.randrange(1 << 30) if seed is None else seed
        self.stopping = threading.Event()
        self.faults = []
        self.slowest = 0.0
        self.changed = threading.Condition()
        self.acks = 0
        self.workers = [Worker(self, number) for number in range(workers)]

    def __enter__(self):
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def acknowledged(self, _number):
        with self.changed:
            self.acks += 1
            self.changed.notify_all()

    def fault(self, text):
        with self.changed:
            self.faults.append(text)

    def wait_acks(self, count, timeout):
        """Wait for so many further acknowledged writes; seconds it took."""
        begin = time.monotonic()
        with self.changed:
            goal = self.acks + count
            if not self.changed.wait_for(lambda: self.acks >= goal, timeout):
                raise AssertionError(f'no {count} acknowledged writes within {timeout} s')
        return time.monotonic() - begin

    def stop(self):
        self.stopping.set()
        for worker in self.workers:
            worker.join(30 * timing.SLOW)
            assert not worker.is_alive(), f'worker {worker.number} hangs'

    def settle(self, client):
        for worker in self.workers:
            worker.settle(client)
        assert not self.faults, f'seed {self.seed}: ' + '; '.join(self.faults[:5])
