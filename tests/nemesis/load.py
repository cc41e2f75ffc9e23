"""One process of clients: load.py NUMBER FOLDER SEED RATE DRIFT-PPM ADDRESS ...

Commands on standard input: `epoch N` (from now on use the keys of epoch N; answered `closed N-1` once the history of
the old one is written) and `stop`.  Each epoch has keys of its own, so its history can be judged by itself.  A
history is FOLDER/epochN.NUMBER in the format of tests/sim/HISTORY.md; beside it `.holds` has the time each lock was
believed held, `.leases` the leases that were left to run out.
"""
import ctypes
import os
import pathlib
import random
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'e2e'))
from harness import timing                     # noqa: E402
from harness.resp import Client, ReplyError    # noqa: E402

NOT_RUN = ('CLUSTERDOWN', 'LOADING', 'BUSY', 'DISKFULL', 'READONLY')
STRING_CLIENTS, LOCK_CLIENTS = 6, 3
COMPARE_AND_DELETE = 'if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end'
STRINGS, CASES, COUNTERS, REGISTERS, SHORT, LOCKS = 4, 2, 2, 10, 2, 3
TIMEOUT_S = 2.5


def now_us():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Unknown(Exception):
    """Nobody knows whether it ran."""


class NotRun(Exception):
    pass


class Book:
    """The lines of one epoch."""

    def __init__(self, number):
        self.number = number
        self.lines, self.holds, self.leases = [], [], []

    def write(self, path):
        for suffix, lines in (('', self.lines), ('.holds', self.holds), ('.leases', self.leases)):
            with open(path + suffix, 'w') as file:
                file.writelines(line + '\n' for line in lines)


class Worker(threading.Thread):
    def __init__(self, all_of_us, name):
        super().__init__(daemon=True)
        self.all, self.label = all_of_us, name
        self.random = random.Random(f'{all_of_us.seed} {name}')
        self.client, self.client_of = None, None
        self.connections, self.value = 0, 0
        self.book = all_of_us.book
        self.next_at = time.monotonic()

    def run(self):
        while not self.all.stopping:
            if self.book is not self.all.book:
                if self.book is not None:
                    self.leave()
                self.book = self.all.book
                self.enter()
            try:
                self.step()
            except (Unknown, NotRun):
                pass
            except Exception as error:  # a client that ends silently would weaken the test
                print(f'problem {self.label}: {error!r}', flush=True)
                self.pause(0.1)

    def enter(self):
        """A new epoch begins."""

    def leave(self):
        """The epoch of self.book ends."""

    def pause(self, seconds):
        if seconds > 0:
            timing.pause(seconds, 'a client takes its time')

    def paced(self):
        """Wait for our next turn; no bursts after a standstill."""
        self.next_at = max(self.next_at + self.random.uniform(0.5, 1.5) * self.all.pace_s, time.monotonic() - 0.1)
        self.pause(self.next_at - time.monotonic())

    def hang_up(self):
        if self.client is not None:
            self.client.close()
            self.client = None

    def connected(self):
        if self.client is not None and self.random.random() < 0.01:
            self.hang_up()
        if self.client is None:
            try:
                self.client_of = self.random.choice(self.all.addresses)
                self.client = Client(self.client_of, 0.4)
            except OSError:
                self.pause(0.05)
                raise NotRun from None
            self.client.socket.settimeout(TIMEOUT_S)
            self.connections += 1

    def op(self, words, text, told, timeout=None):
        """One operation: sends `words`, notes `text => told(reply)`; returns (asked, told_at, reply)."""
        self.connected()
        connection = f'{self.label}.{self.connections}'
        if timeout is not None:
            self.client.socket.settimeout(timeout)
        asked = now_us()
        try:
            reply = self.client.ask(*words)
        except (OSError, ValueError, AssertionError, AttributeError):
            # AttributeError: hung up from outside
            self.hang_up()
            self.note(f'{connection} {asked} - {text} => ?')
            raise Unknown from None
        at = now_us()
        if timeout is not None and self.client is not None:
            self.client.socket.settimeout(TIMEOUT_S)
        if isinstance(reply, ReplyError):
            if reply.code == 'UNCERTAIN':
                self.note(f'{connection} {asked} - {text} => ?')
                raise Unknown
            if reply.code in NOT_RUN:
                self.hang_up()
                self.note(f'# {self.client_of} {asked} {reply.text}')
                self.note(f'{connection} {asked} {at} {text} => !')
                raise NotRun
        result = told(reply)
        self.note(f'{connection} {asked} {at} {text} => {result}')
        return asked, at, reply

    def note(self, line):
        self.book.lines.append(line)

    def fresh(self):
        self.value += 1
        return f'{self.label}-{self.value}'


def word(reply):
    if isinstance(reply, ReplyError):
        return '!'
    return 'nil' if reply is None else str(reply)


def words_of(reply):
    if isinstance(reply, ReplyError):
        return '!'
    return 'nil' if reply is None else ' '.join(word(part) for part in reply)


def cas_word(reply):
    if isinstance(reply, ReplyError):
        return '!'
    if reply[0] == 1:
        return f'1 {reply[1]}'
    return '0 0' if reply[1] == 0 else f'0 {reply[1]} {reply[2]}'


def ok_word(reply):
    return 'ok' if reply == 'OK' else word(reply)


class Strings(Worker):
    def enter(self):
        self.seen, self.versions = {}, {}

    def step(self):
        self.paced()
        kind = self.random.choices(('s', 'v', 'c', 'w', 'r'), (40, 12, 24, 14, 10))[0]
        getattr(self, 'on_' + kind)()

    def key(self, letter, count):
        return f'{letter}{self.book.number}.{self.random.randrange(count)}'

    def on_s(self):
        k, v, chance = self.key('s', STRINGS), self.fresh(), self.random.random()
        if chance < 0.40:
            self.op(('SET', k, v), f'set {k} {v}', ok_word)
        elif chance < 0.75:
            self.seen[k] = self.op(('GET', k), f'get {k}', word)[2]
        elif chance < 0.82:
            self.op(('SET', k, v, 'NX'), f'set {k} {v} nx', ok_word)
        elif chance < 0.88:
            self.op(('SET', k, v, 'GET'), f'set {k} {v} get', word)
        elif chance < 0.94:
            self.op(('DEL', k), f'del {k}', word)
        else:
            self.compare_and_delete(k)

    def compare_and_delete(self, k):
        v = self.seen.get(k)
        if isinstance(v, str):
            self.op(('EVAL', COMPARE_AND_DELETE, 1, k, v), f'cad {k} {v}', word)

    def on_v(self):
        k = self.key('v', CASES)
        if self.random.random() < 0.4 or k not in self.versions:
            reply = self.op(('GETV', k), f'getv {k}', words_of)[2]
            self.versions[k] = 0 if reply is None else reply[0] if isinstance(reply, list) else 0
            return
        v, version = self.fresh(), self.versions[k]
        reply = self.op(('CAS', k, version, v), f'cas {k} {version} {v}', cas_word)[2]
        if isinstance(reply, list):
            self.versions[k] = reply[1]

    def on_c(self):
        k = self.key('c', COUNTERS)
        if self.random.random() < 0.7:
            self.op(('INCR', k), f'incr {k}', word)
        else:
            self.op(('GET', k), f'get {k}', word)

    def on_w(self):
        k, v = self.key('w', REGISTERS), self.fresh()
        if self.random.random() < 0.4:
            self.op(('WOR.SET', k, v), f'wor.set {k} {v}', words_of)
        else:
            self.op(('WOR.GET', k), f'wor.get {k}', words_of)

    def on_r(self):
        """As Redlock does it."""
        k, v, ms = self.key('r', SHORT), self.fresh(), self.random.randrange(200, 1500)
        chance = self.random.random()
        if chance < 0.5:
            self.op(('SET', k, v, 'NX', 'PX', ms), f'set {k} {v} nx px={ms * 1000}', ok_word)
        elif chance < 0.8:
            self.seen[k] = self.op(('GET', k), f'get {k}', word)[2]
        else:
            self.compare_and_delete(k)


class Locks(Worker):
    """Takes a lock, believes that it holds it for as long as its own clock allows, and gives it back, or does not."""

    def enter(self):
        self.lease, self.sure_until, self.ttl_ms = None, 0, 0

    def leave(self):
        if self.lease is None:
            return
        lease, self.lease = self.lease, None
        self.note(f'lease {lease} ended {now_us()}')
        try:
            self.connected()
            self.client.socket.settimeout(0.3)
            self.client.ask('LEASE.REVOKE', lease)
            self.client.socket.settimeout(TIMEOUT_S)
        except (OSError, NotRun, AssertionError, AttributeError):
            self.hang_up()

    def sure(self, asked, ms):
        return asked + int(ms * 1000 * (1 - self.all.drift_ppm / 1e6))

    def ask(self, *words):
        self.connected()
        asked = now_us()
        try:
            reply = self.client.ask(*words)
        except (OSError, ValueError, AssertionError, AttributeError):
            self.hang_up()
            raise Unknown from None
        if isinstance(reply, ReplyError):
            self.hang_up()
            raise NotRun
        return asked, reply

    def renewed(self):
        """Have a lease with half its time left at least."""
        if self.lease is not None and self.sure_until - now_us() > self.ttl_ms * 500:
            return
        if self.lease is not None:
            asked, reply = self.ask('LEASE.KEEPALIVE', self.lease)
            if reply[0] > 0:
                self.believe(asked, reply[0])
                return
            self.lease = None
        self.ttl_ms = self.random.choice((1000, 1500, 2500))
        asked, reply = self.ask('LEASE.GRANT', self.ttl_ms)
        self.lease, self.sure_until = reply, 0
        self.believe(asked, self.ttl_ms)

    def believe(self, asked, ms):
        self.sure_until = max(self.sure_until, self.sure(asked, ms))
        self.note(f'lease {self.lease} until {self.sure_until}')

    def step(self):
        self.paced()
        self.renewed()
        name = f'l{self.book.number}.{self.random.randrange(LOCKS)}'
        wait = self.random.choice((0, 200, 600))
        lease = self.lease
        words = ['LOCK.ACQUIRE', name, 'LEASE', lease] + (['WAIT', wait] if wait else [])
        _, told, token = self.op(words, f'acquire {name} {lease}',
                                 lambda r: 'nolease' if isinstance(r, ReplyError) and r.code == 'NOLEASE' else word(r))
        if isinstance(token, ReplyError):
            if token.code == 'NOLEASE':
                self.lease = None
            return
        if token is not None:
            self.hold(name, lease, token, told)

    def hold(self, name, lease, token, told):
        end = told + self.random.randrange(0, 250000)
        believed = self.sure_until
        leave_it = self.random.random() < 0.08
        try:
            while now_us() < min(end, believed) and self.book is self.all.book and not self.all.stopping:
                if self.random.random() < 0.3:
                    self.op(('LOCK.CHECK', name, token), f'check {name} {token}',
                            lambda r: 'fenced' if isinstance(r, ReplyError) and r.code == 'FENCED' else word(r))
                else:
                    self.pause(0.02)
                if not leave_it:
                    self.renewed()
                    if self.lease != lease:
                        break
                    believed = self.sure_until
        except (Unknown, NotRun):
            pass
        if leave_it:  # as one that died: the lease runs out, the lock with it
            self.book.holds.append(f'{name} {token} {told} {believed}')
            self.book.leases.append(f'{lease} {now_us()} {self.ttl_ms}')
            if self.lease == lease:
                self.lease = None
            return
        until = min(believed, now_us())
        self.book.holds.append(f'{name} {token} {told} {until}')
        for _ in range(3):
            try:
                self.op(('LOCK.RELEASE', name, 'LEASE', lease, 'TOKEN', token), f'release {name} {lease} {token}', word)
                return
            except (Unknown, NotRun):
                if self.book is not self.all.book:
                    return
                self.pause(0.05)


class Process:
    def __init__(self, number, folder, seed, rate, drift_ppm, addresses):
        self.number, self.folder, self.seed = number, folder, f'{seed} {number}'
        self.addresses, self.drift_ppm = addresses, drift_ppm
        self.pace_s = (STRING_CLIENTS + LOCK_CLIENTS) / rate
        self.stopping = False
        self.book = Book(-1)
        self.workers = [Strings(self, f'p{number}s{i}') for i in range(STRING_CLIENTS)] + \
                       [Locks(self, f'p{number}l{i}') for i in range(LOCK_CLIENTS)]
        for worker in self.workers:
            worker.book = None

    def switch(self, number):
        old, self.book = self.book, Book(number)
        if old.number < 0:
            for worker in self.workers:
                worker.start()
            print('closed -1', flush=True)
            return
        end = time.monotonic() + 0.7
        while any(worker.book is old for worker in self.workers):
            if time.monotonic() > end:  # what still waits gets no answer any more
                for worker in self.workers:
                    client = worker.client
                    if worker.book is old and client is not None:
                        try:
                            client.socket.shutdown(socket.SHUT_RDWR)
                        except OSError:
                            pass
            timing.pause(0.01, 'somebody is still asking')
        old.write(os.path.join(self.folder, f'epoch{old.number}.{self.number}'))
        print(f'closed {old.number}', flush=True)

    def run(self):
        for line in sys.stdin:
            words = line.split()
            if words[0] == 'epoch':
                self.switch(int(words[1]))
            elif words[0] == 'stop':
                break
        self.stopping = True


def main():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number, folder, seed, rate, drift_ppm, *addresses = sys.argv[1:]
    Process(int(number), folder, seed, float(rate), float(drift_ppm), addresses).run()
    os._exit(0)


if __name__ == '__main__':
    main()
