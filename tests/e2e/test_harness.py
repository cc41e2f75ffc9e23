"""The checks themselves: against a server that lies in one way each, the load must notice."""
import socket
import threading

import pytest

from harness.load import Load
from harness.resp import Client, ReplyError, encode


class Liar:
    """A little RESP server of SET, GET and INCR that keeps its word except as `lie(command, key, store)` says."""

    def __init__(self, lie):
        self.lie, self.store, self.lock, self.count = lie, {}, threading.Lock(), 0
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.address = '127.0.0.1:%d' % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn):
        file = conn.makefile('rb')
        try:
            while True:
                head = file.readline()
                if not head:
                    return
                words = []
                for _ in range(int(head[1:])):
                    size = int(file.readline()[1:])
                    words.append(file.read(size + 2)[:-2].decode())
                conn.sendall(self._answer(words))
        except (OSError, ValueError):
            pass

    def _answer(self, words):
        with self.lock:
            self.count += 1
            lied = self.lie(self, words)
            if lied is not None:
                return lied
            verb, key = words[0], words[1]
            if verb == 'SET':
                self.store[key] = words[2]
                return b'+OK\r\n'
            if verb == 'INCR':
                self.store[key] = str(int(self.store.get(key, 0)) + 1)
                return b':%s\r\n' % self.store[key].encode()
            value = self.store.get(key)
            return b'$-1\r\n' if value is None else encode(value)[4:]


def honest(_liar, _words):
    return None


def loses_a_write(liar, words):
    return b'+OK\r\n' if words[0] == 'SET' and liar.count % 50 == 0 else None


def counts_twice(liar, words):
    if words[0] == 'INCR' and liar.count % 50 == 0:
        liar.store[words[1]] = str(int(liar.store.get(words[1], 0)) + 1)


def gives_the_reply_of_another(liar, words):
    if words[0] == 'GET' and words[1] == 'load:0' and 'load:1' in liar.store:
        return encode(liar.store['load:1'])[4:]
    return None


def shows_an_old_value(liar, words):
    if words[0] == 'SET':
        liar.store.setdefault('first ' + words[1], words[2])
    if words[0] == 'GET' and 'first ' + words[1] in liar.store:
        return encode(liar.store['first ' + words[1]])[4:]
    return None


def says_it_did_not_run_but_it_did(liar, words):
    if words[0] == 'SET' and liar.count % 20 == 0:
        liar.store[words[1]] = words[2]
        return b'-CLUSTERDOWN no leader\r\n'
    return None


def run_load(lie):
    liar = Liar(lie)
    with Load([liar.address], workers=3, seed=1) as load:
        load.wait_acks(500, 20) if lie is honest else load.stopping.wait(1.0)
    load.settle(Client(liar.address))
    liar.listener.close()


def test_an_honest_server_passes():
    run_load(honest)


@pytest.mark.parametrize('lie', [loses_a_write, counts_twice, gives_the_reply_of_another, shows_an_old_value,
                                 says_it_did_not_run_but_it_did])
def test_a_lie_is_noticed(lie):
    with pytest.raises(AssertionError, match='seed 1'):
        run_load(lie)


def test_an_uncertain_write_may_show_up_late_but_only_once():
    load = Load(['127.0.0.1:1'], workers=1, seed=1)
    worker = load.workers[0]
    worker.value, worker.unknown = 3, {2}
    worker._check_read('0.3')
    worker._check_read('0.2')
    assert not load.faults
    worker.value = 4
    worker._check_read('0.2')
    assert load.faults


def test_error_replies_compare_by_their_text():
    assert ReplyError('ERR a') == ReplyError('ERR a') != ReplyError('ERR b')
    assert ReplyError('NOLEASE gone').code == 'NOLEASE'
