"""Locks, elections, compare-and-set and registers when several want the same thing at once."""
import threading

from harness import timing
from harness.resp import ReplyError, pairs


def waiters(client, name):
    info = pairs(client('LOCK.INFO', name))
    return info['waiters'] if info else 0


def test_waiters_get_the_lock_in_order_and_tokens_only_grow(three):
    """Ten waiters on all nodes; each release hands the lock to the one that came next."""
    client = three.client()
    first = client('LEASE.GRANT', 60000)
    token = client('LOCK.ACQUIRE', 'l', 'LEASE', first)
    queue = []
    for number in range(10):
        waiter = three.nodes[number % 3].client()
        lease = waiter('LEASE.GRANT', 60000)
        waiter.send('LOCK.ACQUIRE', 'l', 'LEASE', lease, 'WAIT', 60000)
        timing.wait_for(f'waiter {number} to stand in the queue', lambda: waiters(client, 'l') == number + 1)
        queue.append((waiter, lease))
    assert client('LOCK.RELEASE', 'l', 'LEASE', first, 'TOKEN', token) == 1
    for number, (waiter, lease) in enumerate(queue):
        granted = waiter.receive()
        assert isinstance(granted, int) and granted > token
        token = granted
        for later, _ in queue[number + 1:]:
            assert not later.buffer
        assert client('LOCK.CHECK', 'l', token) == 1
        assert client('LOCK.RELEASE', 'l', 'LEASE', lease, 'TOKEN', token) == 1
    assert client('LOCK.INFO', 'l') is None


def test_a_waiter_whose_lease_died_is_never_granted(three):
    """Four wait; the first two die while they wait, one by revoke and one by running out: the third gets it."""
    client = three.client()
    holder = client('LEASE.GRANT', 60000)
    client('LOCK.ACQUIRE', 'l', 'LEASE', holder)
    waiting = []
    for ttl in (60000, 1000, 60000, 60000):
        one = three.nodes[len(waiting) % 3].client()
        lease = one('LEASE.GRANT', ttl)
        one.send('LOCK.ACQUIRE', 'l', 'LEASE', lease, 'WAIT', 60000)
        timing.wait_for('it to wait', lambda: waiters(client, 'l') >= len(waiting) + 1)
        waiting.append((one, lease))
    assert client('LEASE.REVOKE', waiting[0][1]) == 1
    reply = waiting[0][0].receive()
    assert isinstance(reply, ReplyError) and reply.code == 'NOLEASE', reply
    reply = waiting[1][0].receive(10)
    assert isinstance(reply, ReplyError) and reply.code == 'NOLEASE', reply
    assert waiters(client, 'l') == 2
    client('LOCK.RELEASE', 'l', 'LEASE', holder)
    third = waiting[2][0].receive()
    assert isinstance(third, int)
    assert pairs(client('LOCK.INFO', 'l'))['lease'] == waiting[2][1]
    assert client('LOCK.RELEASE', 'l', 'LEASE', waiting[2][1], 'TOKEN', third) == 1
    assert waiting[3][0].receive() > third


def test_a_holder_whose_lease_ends_hands_the_lock_on(three):
    client, waiter = three.client(), three.nodes[1].client()
    short, long = client('LEASE.GRANT', 1000), client('LEASE.GRANT', 60000)
    token = client('LOCK.ACQUIRE', 'l', 'LEASE', short)
    begin = timing.boot_ms()
    granted = waiter('LOCK.ACQUIRE', 'l', 'LEASE', long, 'WAIT', 20000)
    assert granted > token
    assert timing.boot_ms() - begin < 1000 + 1000 * timing.SLOW
    assert client.ask('LOCK.CHECK', 'l', token).code == 'FENCED'


def test_a_wait_ends_with_nil_when_its_time_is_over(three):
    client, waiter = three.client(), three.nodes[2].client()
    a, b = client('LEASE.GRANT', 60000), client('LEASE.GRANT', 60000)
    client('LOCK.ACQUIRE', 'l', 'LEASE', a)
    begin = timing.boot_ms()
    assert waiter('LOCK.ACQUIRE', 'l', 'LEASE', b, 'WAIT', 300) is None
    took = timing.boot_ms() - begin
    assert 300 <= took < 300 + 1000 * timing.SLOW, took
    assert waiters(client, 'l') == 0
    client('LOCK.RELEASE', 'l', 'LEASE', a)
    assert client('LOCK.INFO', 'l') is None, 'who waited too long must not be granted later'


def test_a_waiter_that_hangs_up_leaves_the_queue(three):
    client = three.client()
    a, b, c = (client('LEASE.GRANT', 60000) for _ in range(3))
    client('LOCK.ACQUIRE', 'l', 'LEASE', a)
    gone, stays = three.nodes[1].client(), three.nodes[2].client()
    gone.send('LOCK.ACQUIRE', 'l', 'LEASE', b, 'WAIT', 60000)
    timing.wait_for('b to wait', lambda: waiters(client, 'l') == 1)
    stays.send('LOCK.ACQUIRE', 'l', 'LEASE', c, 'WAIT', 60000)
    timing.wait_for('c to wait', lambda: waiters(client, 'l') == 2)
    gone.close()
    timing.wait_for('b to leave', lambda: waiters(client, 'l') == 1, 10)
    client('LOCK.RELEASE', 'l', 'LEASE', a)
    assert isinstance(stays.receive(), int)
    assert pairs(client('LOCK.INFO', 'l'))['lease'] == c


def test_a_waiter_that_reconnects_keeps_its_place(three):
    """The same lease asks again on another node: it joins its own wait and is granted once, before who came later."""
    client = three.client()
    a, b, c = (client('LEASE.GRANT', 60000) for _ in range(3))
    client('LOCK.ACQUIRE', 'l', 'LEASE', a)
    old, later, again = three.nodes[1].client(), three.nodes[0].client(), three.nodes[2].client()
    old.send('LOCK.ACQUIRE', 'l', 'LEASE', b, 'WAIT', 60000)
    timing.wait_for('b to wait', lambda: waiters(client, 'l') == 1)
    later.send('LOCK.ACQUIRE', 'l', 'LEASE', c, 'WAIT', 60000)
    timing.wait_for('c to wait', lambda: waiters(client, 'l') == 2)
    again.send('LOCK.ACQUIRE', 'l', 'LEASE', b, 'WAIT', 60000)
    assert isinstance(old.receive(), ReplyError)
    assert waiters(client, 'l') == 2
    client('LOCK.RELEASE', 'l', 'LEASE', a)
    token = again.receive()
    assert isinstance(token, int)
    client('LOCK.RELEASE', 'l', 'LEASE', b, 'TOKEN', token)
    assert later.receive() > token


def test_waiters_survive_the_death_of_the_leader(three):
    """Waiting on the two nodes that live, the queue goes on where it was when the leader is killed."""
    leader = three.wait_leader()
    others = [n for n in three.nodes if n is not leader]
    client = others[0].client()
    leases = [client('LEASE.GRANT', 60000) for _ in range(5)]
    token = client('LOCK.ACQUIRE', 'l', 'LEASE', leases[0])
    waiting = []
    for number, lease in enumerate(leases[1:]):
        one = others[number % 2].client(60)
        one.send('LOCK.ACQUIRE', 'l', 'LEASE', lease, 'WAIT', 60000)
        timing.wait_for('it to wait', lambda: waiters(client, 'l') == number + 1)
        waiting.append((one, lease))
    leader.kill9()
    three.wait_leader(but=leader)
    assert three.call('LOCK.RELEASE', 'l', 'LEASE', leases[0], 'TOKEN', token) == 1
    for one, lease in waiting:
        granted = one.receive()
        assert isinstance(granted, int) and granted > token, granted
        token = granted
        assert three.call('LOCK.RELEASE', 'l', 'LEASE', lease, 'TOKEN', token) == 1


def race(cluster, calls):
    """Each call on a connection and a thread of its own, all let go at the same moment; replies in their order."""
    gate, replies = threading.Barrier(len(calls)), [None] * len(calls)

    def one(number, words):
        with cluster.nodes[number % len(cluster.nodes)].client() as client:
            client('PING')
            gate.wait()
            replies[number] = client.ask(*words)
    threads = [threading.Thread(target=one, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def test_of_racing_cas_of_one_version_one_wins(three):
    client = three.client()
    for turn in range(20):
        version = client('CAS', f'c{turn}', 0, 'start')[1]
        replies = race(three, [('CAS', f'c{turn}', version, f'racer {n}') for n in range(6)])
        won = [n for n, reply in enumerate(replies) if reply[0] == 1]
        assert len(won) == 1, replies
        new = replies[won[0]][1]
        assert client('GETV', f'c{turn}') == [new, f'racer {won[0]}']
        for number, reply in enumerate(replies):
            if number != won[0]:
                assert reply == [0, new, f'racer {won[0]}'], 'who lost is told what is there'


def test_of_racing_registers_one_value_stays_for_ever_and_all_are_told(three):
    for turn in range(20):
        replies = race(three, [('WOR.SET', f'w{turn}', f'racer {n}') for n in range(6)])
        won = [n for n, reply in enumerate(replies) if reply[0] == 1]
        assert len(won) == 1, replies
        assert {(reply[1], reply[2]) for reply in replies} == {(replies[won[0]][1], f'racer {won[0]}')}
    leader = three.wait_leader()
    leader.kill9()
    three.wait_leader(but=leader)
    assert three.call('WOR.SET', 'w19', 'late')[2].startswith('racer')


def test_racing_acquires_give_one_token(three):
    client = three.client()
    leases = [client('LEASE.GRANT', 60000) for _ in range(6)]
    highest = 0
    for turn in range(20):
        replies = race(three, [('LOCK.ACQUIRE', 'l', 'LEASE', lease) for lease in leases])
        won = [n for n, reply in enumerate(replies) if reply is not None]
        assert len(won) == 1, replies
        assert replies[won[0]] > highest
        highest = replies[won[0]]
        assert client('LOCK.RELEASE', 'l', 'LEASE', leases[won[0]], 'TOKEN', highest) == 1


def test_a_delayed_release_never_frees_a_later_grant(three):
    client = three.client()
    a, b = client('LEASE.GRANT', 60000), client('LEASE.GRANT', 60000)
    old = client('LOCK.ACQUIRE', 'l', 'LEASE', a)
    client('LOCK.RELEASE', 'l', 'LEASE', a, 'TOKEN', old)
    new = client('LOCK.ACQUIRE', 'l', 'LEASE', a)
    assert client('LOCK.RELEASE', 'l', 'LEASE', a, 'TOKEN', old) == 0
    assert client('LOCK.CHECK', 'l', new) == 1
    client('LOCK.RELEASE', 'l', 'LEASE', a, 'TOKEN', new)
    other = client('LOCK.ACQUIRE', 'l', 'LEASE', b)
    assert client('LOCK.RELEASE', 'l', 'LEASE', a) == 0
    assert client('LOCK.CHECK', 'l', other) == 1


def test_acquire_waits_on_a_string_that_a_redis_library_took(three):
    client = three.client()
    lease = client('LEASE.GRANT', 60000)
    assert client('SET', 'l', 'held by redlock', 'NX', 'PX', 500) == 'OK'
    waiter = three.nodes[1].client()
    waiter.send('LOCK.ACQUIRE', 'l', 'LEASE', lease, 'WAIT', 20000)
    timing.wait_for('it to wait or be granted', lambda: waiters(client, 'l') == 1 or client('TYPE', 'l') == 'lock')
    assert isinstance(waiter.receive(10), int)
    assert client('SET', 'l', 'again', 'NX', 'PX', 500) is None
