"""ROUTE.*: the protocol between lockd and the proxies, spoken by hand."""
import pytest

from harness import timing
from harness.resp import ReplyError

TTL = 2000


class Party:
    """A proxy as lockd sees one: a lease, a connection for questions and one for ROUTE.NEXT."""

    def __init__(self, node):
        self.client, self.next = node.client(30), node.client(30)
        self.lease = self.client('LEASE.GRANT', TTL)
        self.serial = 0
        self.revoked = []

    def ask(self, verb, session, *words):
        return self.client(f'ROUTE.{verb}', 'chat', session, *words)

    def bind(self, session, first, *shard):
        return self.client('ROUTE.BIND', 'chat', session, 'LEASE', self.lease, first, 'PREFER', *shard)

    def get(self, session):
        return self.client('ROUTE.GET', 'chat', session, 'LEASE', self.lease)

    def send_next(self):
        self.next.send('ROUTE.NEXT', 'LEASE', self.lease, self.serial)

    def hear_next(self):
        """[(session, epoch)] revoked by the reply."""
        reply = self.next.receive()
        if isinstance(reply, ReplyError):
            raise reply
        assert reply[0] == TTL
        self.serial = reply[1]
        rest = reply[2:]
        assert len(rest) % 3 == 0
        return [(rest[i + 1], rest[i + 2]) for i in range(0, len(rest), 3)]

    def cover(self):
        self.send_next()
        return self.hear_next()

    def send_move(self, session, epoch, target, *words):
        self.client.send('ROUTE.MOVE', 'chat', session, epoch, 'LEASE', self.lease, target, *words)


@pytest.fixture
def a(three):
    return Party(three.nodes[0])


@pytest.fixture
def b(three):
    return Party(three.nodes[1])


def test_bind_get_touch_drop(a, b):
    assert a.get('s') is None
    backend, epoch, revision, new, *shard = a.bind('s', 'x', 'x', 'y')
    assert (backend, new, shard) == ('x', 1, ['x', 'y']) and epoch > 0 and revision >= epoch
    again = b.bind('s', 'y', 'y', 'x')
    assert again[:2] == ['x', epoch] and again[3:] == [0, 'x', 'y'], 'who comes later learns the binding'
    assert b.get('s')[:2] == ['x', epoch]
    assert a.client('ROUTE.TOUCH', 'chat', 'LEASE', a.lease, 's', 'none') == [epoch, 0]
    assert a.ask('DROP', 's', epoch, 'LEASE', a.lease) == 1
    assert a.ask('DROP', 's', epoch, 'LEASE', a.lease) == 0
    assert a.ask('DROP', 's', epoch + 1000, 'LEASE', b.lease) == 0
    assert a.get('s')[:2] == ['x', epoch], 'dropping a hold does not forget the binding'


def test_words_that_are_wrong_are_named(a):
    client, lease = a.client, a.lease
    for words, name in (
            (('ROUTE.BIND', 'chat', 's', 'LEASE', lease, 'z', 'PREFER', 'x', 'y'), 'ERR'),
            (('ROUTE.BIND', 'chat', 's', 'LEASE', lease, 'x', 'PREFER', 'x', 'x'), 'ERR'),
            (('ROUTE.BIND', 'chat', 's', 'LEASE', 'abc', 'x', 'PREFER', 'x'), 'ERR'),
            (('ROUTE.BIND', 'chat', 's', 'FROB', lease, 'x', 'PREFER', 'x'), 'ERR'),
            (('ROUTE.BIND', 'chat', 's', 'LEASE', lease, 'x', 'FROB', 'x'), 'ERR'),
            (('ROUTE.BIND', 'chat', 's', 'LEASE', lease + 999999, 'x', 'PREFER', 'x'), 'NOLEASE'),
            (('ROUTE.BIND', 'chat', 's', 'LEASE', lease, 'b0', 'PREFER', *[f'b{n}' for n in range(65)]), 'ERR'),
            (('ROUTE.GET', 'chat', 's', 'LEASE', lease + 999999), 'NOLEASE'),
            (('ROUTE.MOVE', 'chat', 'none', 1, 'LEASE', lease, 'x'), 'ERR'),
            (('ROUTE.MOVE', 'chat', 's', 'abc', 'LEASE', lease, 'x'), 'ERR'),
            (('ROUTE.NEXT', 'LEASE', lease + 999999, 0), 'NOLEASE'),
            (('ROUTE.NEXT', 'LEASE', lease, 'abc'), 'ERR'),
            (('ROUTE.SUSPECT', 'chat', 'x', 'abc', 'LEASE', lease), 'ERR')):
        reply = client.ask(*words)
        assert isinstance(reply, ReplyError) and reply.code == name, (words, reply)


def test_next_answers_after_a_third_of_the_ttl_and_renews_the_lease(a):
    begin = timing.boot_ms()
    for _ in range(6):
        assert a.cover() == []
    took = timing.boot_ms() - begin
    assert 6 * TTL / 3 * 0.5 < took < 6 * TTL / 3 * 1.5 + 1000 * timing.SLOW
    assert took > TTL, 'this test has to outlive the ttl to show that NEXT renews'
    assert a.client('LEASE.KEEPALIVE', a.lease) == [TTL]


def test_a_move_waits_for_the_acknowledgement_of_every_other_holder(a, b):
    epoch = a.bind('s', 'x', 'x', 'y')[1]
    assert b.bind('s', 'x', 'x', 'y')[1] == epoch
    b.cover()
    a.cover()
    b.send_next()
    a.send_move('s', epoch, 'y', 'FORCE')
    assert b.hear_next() == [('s', epoch)], 'the holder is told at once'
    assert a.client.silent(0.3), 'the move stalls until the holder has acknowledged'
    b.send_next()
    backend, new_epoch, _, new, *shard = a.client.receive()
    assert (backend, new, shard) == ('y', 0, ['x', 'y']) or (backend, shard) == ('y', ['x', 'y'])
    assert new_epoch > epoch
    assert b.hear_next() == []
    assert b.get('s')[:2] == ['y', new_epoch]


def test_a_move_waits_no_longer_than_the_cover_of_a_silent_holder(a, b):
    epoch = a.bind('s', 'x', 'x', 'y')[1]
    b.bind('s', 'x', 'x', 'y')
    b.cover()
    begin = timing.boot_ms()
    a.send_move('s', epoch, 'y', 'FORCE')
    while a.client.silent(0.02):
        a.next('LEASE.KEEPALIVE', a.lease)
    took = timing.boot_ms() - begin
    assert a.client.receive()[0] == 'y'
    assert took <= TTL + 1000 * timing.SLOW, took
    assert took >= TTL / 3, f'b was covered until about {TTL} ms after its NEXT, the move took {took:.0f} ms'


def test_keepalive_keeps_the_lease_but_not_the_cover(a, b):
    epoch = a.bind('s', 'x', 'x', 'y')[1]
    b.bind('s', 'x', 'x', 'y')
    b.cover()
    begin = timing.boot_ms()
    a.send_move('s', epoch, 'y', 'FORCE')
    while a.client.silent(0.2):
        assert b.client('LEASE.KEEPALIVE', b.lease) == [TTL]
        a.next('LEASE.KEEPALIVE', a.lease)
        assert timing.boot_ms() - begin < TTL + 1000 * timing.SLOW, 'renewals must not hold a move up'
    assert a.client.receive()[0] == 'y'


def test_a_stalled_move_holds_up_readers_and_survives_its_mover(three, a, b):
    epoch = a.bind('s', 'x', 'x', 'y')[1]
    b.bind('s', 'x', 'x', 'y')
    b.cover()
    a.send_move('s', epoch, 'y', 'FORCE')
    c = Party(three.nodes[2])
    c.client.send('ROUTE.GET', 'chat', 's', 'LEASE', c.lease)
    a.client.close()
    reply = c.client.receive()
    assert reply[0] == 'y' and reply[1] > epoch, 'a reader waits for the outcome, and the outcome is the move'


def test_a_second_move_of_the_same_epoch_gets_the_winners_binding(three, a, b):
    epoch = a.bind('s', 'x', 'x', 'y', 'z')[1]
    b.bind('s', 'x', 'x', 'y', 'z')
    a.send_move('s', epoch, 'y', 'FORCE')
    first = a.client.receive()
    b.send_move('s', epoch, 'z', 'FORCE')
    second = b.client.receive()
    assert first[0] == second[0] == 'y' and first[1] == second[1]


def test_a_move_needs_a_reason_and_stays_in_the_shard(three, a, b):
    c = Party(three.nodes[2])
    for party in (a, b, c):
        party.send_next()
    epoch = a.bind('s', 'x', 'x', 'y')[1]
    a.send_move('s', epoch, 'y')
    reply = a.client.receive()
    assert isinstance(reply, ReplyError) and reply.text.startswith('ERR backend in service'), reply
    a.send_move('s', epoch, 'w', 'FORCE')
    reply = a.client.receive()
    assert isinstance(reply, ReplyError) and reply.code == 'ERR', 'not even by force outside the shard'
    assert a.client('ROUTE.SUSPECT', 'chat', 'x', 0, 'LEASE', a.lease)[0] == 1
    a.send_move('s', epoch, 'y')
    assert isinstance(a.client.receive(), ReplyError), 'one suspicious proxy alone moves nothing'
    suspecting, joined = b.client('ROUTE.SUSPECT', 'chat', 'x', 0, 'LEASE', b.lease)
    assert suspecting == 2 and joined == 3
    a.send_move('s', epoch, 'y')
    reply = a.client.receive()
    assert not isinstance(reply, ReplyError) and reply[0] == 'y' and reply[1] > epoch


def test_a_lease_that_ends_lets_go_and_its_next_says_so(a, b):
    epoch = a.bind('s', 'x', 'x', 'y')[1]
    b.bind('s', 'x', 'x', 'y')
    b.cover()
    b.send_next()
    assert b.next.silent(0.1), 'the first NEXT is answered at once, the second waits for news'
    assert a.client('LEASE.REVOKE', b.lease) == 1
    reply = b.next.receive()
    assert isinstance(reply, ReplyError) and reply.code == 'NOLEASE'
    begin = timing.boot_ms()
    a.send_move('s', epoch, 'y', 'FORCE')
    assert a.client.receive()[0] == 'y'
    assert timing.boot_ms() - begin < 500 * timing.SLOW, 'nobody else holds it: one round trip'


def test_a_move_that_stalls_is_finished_after_the_leader_died(three):
    leader = three.wait_leader()
    others = [n for n in three.nodes if n is not leader]
    a, b = Party(others[0]), Party(others[1])
    epoch = a.bind('s', 'x', 'x', 'y')[1]
    b.bind('s', 'x', 'x', 'y')
    b.cover()
    a.send_move('s', epoch, 'y', 'FORCE')
    assert a.client.silent(0.2)
    leader.kill9()
    three.wait_leader(but=leader)
    reply = a.client.receive(30)
    assert not isinstance(reply, ReplyError) and reply[0] == 'y', reply
