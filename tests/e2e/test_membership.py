"""The members of a cluster change while it works: replaced, removed, let in again; and leadership is given away."""
import re
import threading
import time

import pytest

from harness import timing
from harness.resp import ReplyError, pairs


def members(node):
    """{number: (voter or learner, store id)} as this node has applied it."""
    status = node.status()
    return {one[0]: (one[1], one[2]) for one in status['members']} if status else {}


def change(cluster, *words):
    """A change of members, asked again while the one before is not in effect."""
    assert cluster.call(*words) == 'OK'


def wait_voters(cluster, node, count):
    """Until every change is in effect and so many vote, by what this node knows."""
    def there():
        status = node.status()
        return status and not status['members-pending'] and [m[1] for m in status['members']] == ['voter'] * count
    timing.wait_for(f'{count} voters', there, 30 * timing.SLOW)


def add_command(node):
    """The command that the log of a node that is out names."""
    return node.process.wait_line(r'identity outcast .*: NODE\.ADD (\d+ \S+ [0-9a-f]{16})').group(1).split()


def test_a_dead_node_is_replaced_by_an_empty_one(cluster):
    three = cluster(3)
    leader = three.wait_leader()
    dead, third = [n for n in three.nodes if n is not leader]
    with leader.client(30) as client:
        token = client('LOCK.ACQUIRE', 'lock', 'LEASE', client('LEASE.GRANT', 600000))
        dead.kill9()
        dead.wipe()
        assert client.pipeline([('SET', f'k{n}', n) for n in range(500)]) == ['OK'] * 500
    dead.start().wait_listening()
    number, address, store = add_command(dead)
    assert int(number) == dead.number and store == dead.status()['store-id']
    with dead.client() as client:
        assert f'NODE.ADD {number} {address} {store}' in str(client.ask('GET', 'k1'))
    reply = three.wait_leader().client(30).ask('NODE.ADD', number, address, store)
    assert isinstance(reply, ReplyError) and f'NODE.REMOVE {number} first' in str(reply)
    change(three, 'NODE.REMOVE', number)
    change(three, 'NODE.ADD', number, address, store)
    wait_voters(three, leader, 3)
    timing.wait_for('it to serve', lambda: (dead.status() or {}).get('role') == 'follower')
    assert members(leader)[dead.number] == ('voter', store)
    third.kill9()  # every majority needs the new one now
    assert three.call('SET', 'after', '1') == 'OK'
    leader.kill9()
    third.start().wait_listening()
    assert three.call('GET', 'k499') == '499'
    assert three.call('GET', 'after') == '1'
    assert three.call('LOCK.CHECK', 'lock', token) == 1
    dead.kill9()
    leader.start().wait_listening()
    dead.start().wait_listening()  # it knows from its own disk who it is
    assert three.call('GET', 'after') == '1'
    timing.wait_for('it to serve', lambda: (dead.status() or {}).get('role') in ('follower', 'leader'))


def test_a_removed_node_refuses_and_says_how_it_comes_back(cluster):
    three = cluster(3)
    out = three.followers()[0]
    assert three.call('SET', 'a', '1') == 'OK'
    change(three, 'NODE.REMOVE', out.number)
    timing.wait_for('it to know', lambda: (out.status() or {}).get('role') == 'outcast')
    words = add_command(out)
    with out.client(30) as client:
        reply = client.ask('SET', 'a', '2')
        assert isinstance(reply, ReplyError) and reply.code == 'CLUSTERDOWN'
        told = re.search(r'NODE\.ADD (\S+ \S+ \S+)', str(reply)).group(1).split()
        assert told == words
    out.kill9()
    out.start().wait_listening()
    timing.wait_for('it to remember', lambda: (out.status() or {}).get('role') == 'outcast')
    assert three.call('SET', 'a', '3') == 'OK'
    change(three, 'NODE.ADD', *words)
    wait_voters(three, three.wait_leader(), 3)
    timing.wait_for('it to serve', lambda: (out.status() or {}).get('role') == 'follower')
    with out.client(30) as client:
        assert client('GET', 'a') == '3'


def test_a_cluster_gets_smaller_and_the_last_node_stays(cluster):
    three = cluster(3)
    assert three.call('SET', 'a', '1') == 'OK'
    for _ in range(2):
        leader = three.wait_leader()
        change(three, 'NODE.REMOVE', leader.number)  # each hands over before it is out
        timing.wait_for('it to know', lambda: (leader.status() or {}).get('role') == 'outcast')
        assert three.call('INCR', 'n') > 0
    last = three.wait_leader()
    with last.client(30) as client:
        assert 'last that votes' in str(client.ask('NODE.REMOVE', last.number))
        assert client('GET', 'n') == '2'


class Writer:
    """Writes through one node, one command after the other, and remembers when each was answered."""

    def __init__(self, node):
        self.times, self.errors, self.ended = [], [], threading.Event()
        self.client = node.client(30)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.ended.is_set():
            reply = self.client.ask('INCR', 'writes')
            self.times.append(time.monotonic())
            if reply != len(self.times):
                self.errors.append(reply)

    def end(self):
        self.ended.set()
        self.thread.join(30)
        self.client.close()
        return self

    def longest_ms(self, since, until):
        times = [t for t in self.times if since <= t <= until]
        return 1000 * max(b - a for a, b in zip([since, *times], [*times, until]))


@pytest.mark.alone
def test_leadership_is_given_away_under_load(cluster):
    three = cluster(3)
    bystander = three.followers()[0]
    writer = Writer(bystander)
    gaps = []
    for round_ in range(10):
        leader = three.wait_leader()
        target = [n for n in three.nodes if n is not leader][round_ % 2]
        words = ('NODE.TRANSFER', target.number) if round_ % 3 else ('NODE.TRANSFER',)
        with (leader if round_ % 2 else bystander).client(30) as client:
            since = time.monotonic()
            leads = client(*words)
            timing.pause(0.1, 'writes go on after it')
            gaps.append(writer.longest_ms(since, time.monotonic()))
        assert leads != leader.number and (len(words) == 1 or leads == target.number)
        assert three.wait_leader().number == leads
    writer.end()
    assert not writer.errors, writer.errors[:3]  # each ran once, in order, and none failed
    assert sorted(gaps)[len(gaps) // 2] < 100, gaps


@pytest.mark.alone
def test_a_leader_that_is_stopped_hands_over_first(cluster):
    three = cluster(3)
    leader = three.wait_leader()
    writer = Writer([n for n in three.nodes if n is not leader][0])
    timing.wait_for('writes', lambda: len(writer.times) > 20)
    since = time.monotonic()
    assert leader.term() == 0
    timing.pause(0.3, 'writes go on after it')
    gap = writer.longest_ms(since, time.monotonic())
    writer.end()
    assert not writer.errors, writer.errors[:3]
    assert gap < 250, gap  # an election would take lease and spread, and more


def test_a_cut_off_leader_changes_no_members(cluster):
    """B3.  It may not acknowledge a change, and what the others acknowledge meanwhile stays."""
    three = cluster(3, relayed=True, forward_timeout_ms=2000)
    assert three.call('SET', 'a', '0') == 'OK'
    cut_off = three.wait_leader()
    with cut_off.client(30) as client:
        three.cut_off(cut_off)
        others = [n for n in three.nodes if n is not cut_off]
        reply = client.ask('NODE.REMOVE', others[0].number)
        assert isinstance(reply, ReplyError) and reply.code in ('UNCERTAIN', 'CLUSTERDOWN'), reply
    three.wait_leader(but=cut_off)
    for number in range(20):
        with others[number % 2].client(30) as client:
            assert client('SET', 'a', number) == 'OK'
    three.heal()
    timing.wait_for('it to follow', lambda: (cut_off.status() or {}).get('role') == 'follower')
    for node in three.nodes:
        with node.client(30) as client:
            assert client('GET', 'a') == '19'
        assert [m[0] for m in pairs(node.client(30)('NODE.STATUS'))['members']] == [1, 2, 3]
