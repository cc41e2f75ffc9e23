"""Whatever is said to the ports between nodes, it is refused with a line that says who and why, counted, and nobody who
works notices it."""
import os
import random
import threading

import pytest

from harness import peer, timing
from harness.peer import Link, frame, hello, identity

pytestmark = pytest.mark.hostile


@pytest.fixture
def busy(cluster):
    """Three nodes with a client working on each; at the end nothing was lost, and nothing had to be asked twice."""
    three = cluster(3, leader_lease_ms=2000, stall_ms=0)  # a busy machine shall not make elections
    three.call('SET', 'warm', 'up')
    stop, faults, done = threading.Event(), [], [0, 0, 0]

    def work(index):
        with three.nodes[index].client(30) as client:
            while not stop.is_set():
                number = done[index] + 1
                answers = client.ask('SET', f'work{index}', number), client.ask('GET', f'work{index}')
                if answers != ('OK', str(number)):
                    faults.append((index, number, answers))
                    return
                done[index] = number
    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    ballot = three.wait_leader().status()['ballot']
    yield three
    after = list(done)
    timing.wait_for('everybody to go on working', lambda: faults or all(d > a + 2 for d, a in zip(done, after)))
    stop.set()
    for thread in threads:
        thread.join(40)
    assert not faults, (faults, done)
    assert three.wait_leader().status()['ballot'] == ballot, 'strangers have made an election'
    for index in range(3):
        assert three.call('GET', f'work{index}') == str(done[index])
    for node in three.nodes:
        assert node.process.running() and not node.process.matches('fatal'), node.process.text()[-3000:]
    three.stop_all()


def refusals(node):
    with node.client() as client:
        lines = client('INFO', 'peers').splitlines()
    return {line.split(':')[0].removeprefix('peer_refused_'): int(line.split(':')[1]) for line in lines if ':' in line}


def resident_kib(node):
    with open(f'/proc/{node.process.pid}/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmRSS'))


def counted(node, reason, least=1):
    timing.wait_for(f'{least} refused for {reason}', lambda: refusals(node)[reason] >= least)


def said(node, reason):
    return node.process.wait_line(rf'peer refused from=127\.0\.0\.1:\d+ .*reason={reason} .*what="[^"]+"')


def store_of(node):
    return int(node.status()['store-id'], 16)


def cluster_of(node):
    return int(node.status()['cluster-id'], 16)


def test_garbage_is_refused(busy):
    rng = random.Random(7)
    for node in busy.nodes:
        for _ in range(60):
            with Link(node.peer_address) as link:
                link.say(rng.choice([
                    rng.randbytes(rng.randint(13, 4000)), b'GET / HTTP/1.1\r\nHost: x\r\n\r\n', b'*1\r\n$4\r\nPING\r\n',
                    b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + rng.randbytes(500), b'\xff' * 4, b'\0' * 64,
                    hello(2, 1, 5)[:-1] + b'\xff', frame(77, b''), frame(peer.HELLO, b'\xff' * 12),
                    frame(peer.PAXOS, rng.randbytes(90))]))
                assert link.ended()
        assert sum(refusals(node).values()) >= 60
        lines = len(node.process.matches('peer refused'))
        assert 1 <= lines <= 20, f'{lines} lines for 60 tries of one host'
        said(node, 'length')


def test_after_a_good_hello_nothing_is_believed_either(busy):
    rng = random.Random(8)
    target = busy.nodes[0]
    good = hello(2, 1, 99)
    for bad, reason in [(b'\xff\xff\xff\x7f', 'length'), (good, 'second_hello'),
                        (good[:-1] + bytes([good[-1] ^ 1]), 'checksum'), (hello(2, 1, 99, peer.VERSION + 1), 'version'),
                        (frame(77, b'abc'), 'fields'), (frame(peer.PAXOS, rng.randbytes(3)), 'fields')]:
        before = refusals(target)[reason]
        with Link(target.peer_address) as link:
            link.say(good, bad)
            assert link.ended(), reason
        counted(target, reason, before + 1)
        said(target, reason)


def test_other_versions_clusters_and_stores_are_refused(busy):
    one, two = busy.nodes[:2]
    cluster, store = cluster_of(one), store_of(two)
    stores = [store_of(node) for node in busy.nodes]
    with Link(one.peer_address) as link:
        link.say(hello(2, 1, 1, peer.VERSION + 1))
        assert link.ended()
    said(one, 'version')
    for source, target in ((2, 3), (1, 1)):
        with Link(one.peer_address) as link:
            link.say(hello(source, target, 1))
            assert link.ended()
    said(one, 'number')
    cases = [
        ('cluster', identity(2, 1, 3, store, 40, cluster ^ 1, stores)),
        ('member', identity(2, 1, 3, 0x1234, 40)),  # empty, in the place of one that is not
        ('member', identity(2, 1, 3, 0x1234, 40, cluster, stores)),  # knows the cluster, and was never in it
        ('twice', identity(2, 1, 3, stores[0], 40)),
        ('number', identity(3, 1, 3, store, 40)),  # another than its hello said
    ]
    for reason, question in cases:
        before = refusals(one)[reason]
        with Link(one.peer_address) as link:
            link.say(hello(2, 1, 40), question)
            counted(one, reason, before + 1)
            link.say(*[frame(peer.PAXOS, bytes([kind]) + os.urandom(100)) for kind in range(1, 20)])
        said(one, reason)
    with Link(one.peer_address) as link:  # a number that nobody has
        link.say(hello(9, 1, 5), identity(9, 1, 3, 77, 5))
        counted(one, 'unknown')
    said(one, 'unknown')


def test_lengths_that_are_claimed_take_no_memory(busy):
    node = busy.nodes[0]
    before = resident_kib(node)
    links = [Link(node.peer_address) for _ in range(20)]
    for number, link in enumerate(links):
        link.say(hello(2, 1, 1000 + number), (70 << 20).to_bytes(4, 'little'), bytes(1 << 20))
    zeros = bytes(1 << 20)
    for _ in range(40):
        for link in links[-4:]:
            link.say(zeros)
    counted(node, 'twice')  # that many that claim one number are not kept
    assert resident_kib(node) < before + 48 * 1024, 'a stranger takes memory'
    for link in links:
        link.socket.close()


def test_silent_strangers_do_not_shut_nodes_out(busy):
    """More connections than there are places, all the time; meanwhile a link between nodes is made anew."""
    one = busy.nodes[0]
    links = [Link(one.peer_address) for _ in range(150)]
    counted(one, 'crowd', 80)
    with Link(one.peer_address) as link:  # who says hello stays
        link.say(hello(2, 1, 5))
        links += [Link(one.peer_address) for _ in range(150)]
        counted(one, 'crowd', 200)
        assert link.open()
    counted(one, 'silent')
    for link in links:
        link.socket.close()


def test_replayed_frames_are_harmless(cluster, tmp_path):
    """Everything that one node ever said to another is said again, in the same life, and in the next."""
    three = cluster(3, relayed=True)
    one = three.wait_leader()
    two = three.followers()[0]
    relay = three.relays[one, two]
    recorded = relay.record()
    relay.drop()  # so that what is recorded begins with a hello
    relay.heal()
    timing.wait_for('the link', lambda: any(recorded))
    for number in range(50):
        three.call('SET', 'count', number)
        three.call('LOCK.ACQUIRE', f'lock{number}', 'LEASE', three.call('LEASE.GRANT', 60000))
    for life in range(2):
        timing.wait_for('something to say again', lambda: any(len(stream) > 1000 for stream in recorded))
        heard = [bytes(stream) for stream in recorded if stream]
        revision = three.wait_leader().status()['revision']
        for stream in heard:
            with Link(two.peer_address) as link:
                link.say(stream)
                link.ended(0.2)
        three.call('SET', 'life', life)
        assert three.call('GET', 'count') == '49'
        assert three.wait_leader().status()['revision'] <= revision + 1 + 2, 'something ran again'
        if life == 0:
            one.kill9()
            one.start().wait_listening()
            timing.wait_for('it to be back', lambda: (one.status() or {}).get('role') in ('leader', 'follower'))
            three.call('SET', 'between', 1)
    timing.wait_for('all to agree', lambda: len({(node.status() or {}).get('revision') for node in three.nodes}) == 1)
    for node in three.nodes:
        assert node.process.running() and not node.process.matches('fatal|halted')
    three.stop_all()
