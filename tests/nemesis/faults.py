"""What can go wrong, one function for each kind.

A function does it, waits (`f.hold()`) and may undo it; whatever `World.undo` was told is undone after it anyway, and
nodes that ended are started again.  `f.begin(target)` comes right before the blow: recovery is counted from there
(FROM_START: a working majority remains), from when f.majority() is called, or from the end of the fault (FROM_END).
CHANGES is the number of leader changes that are allowed; None: any.
"""
import os
import random
import shutil
import socket
import threading
import time

from world import Client, ReplyError, now_us, timing

FROM_START, FROM_MAJORITY, FROM_END = 'start', 'majority', 'end'
FAULTS = {}


class Kind:
    def __init__(self, name, function, since, changes, hold, needs, loose, commands):
        self.name, self.function, self.since, self.changes = name, function, since, changes
        self.hold, self.needs, self.loose, self.commands = hold, needs, loose, commands
        self.summary = (function.__doc__ or '').strip().split('\n')[0]


def fault(name, since=FROM_START, changes=None, hold=(1.5, 3.0), needs=(), loose=False, commands=()):
    def keep(function):
        FAULTS[name] = Kind(name, function, since, changes, hold, needs, loose, commands)
        return function
    return keep


# ---- what a fault needs: a word and how to find out what is missing ----

def _tool(name, package):
    return lambda w: None if shutil.which(name) else f'no {name} (package {package})'


def _group(controller):
    return lambda w: None if controller in w.groups else f'no cgroup controller {controller}'


def _strace(w):
    return None if shutil.which('strace') else 'no strace'


def _delay(w):
    if w.delay_program is None:
        return 'nemesis-delay is not built (libnetfilter-queue-dev)'
    return _tool('iptables', 'iptables')(w)


def _blkio(w):
    if 'blkio' not in w.groups:
        return 'no cgroup controller blkio'
    if w.groups['blkio'][0] == 1:
        return 'control groups of version 1 do not throttle buffered writes'
    return None if w.loop else 'no loop devices'


def _netdev_dup(w):
    """Some kernels lack it: try it on a device of ours."""
    node = w.nodes[0]
    try:
        node.rules(DUPLICATE % 0)
        return None
    except RuntimeError as error:
        return str(error)
    finally:
        w.heal()


def _tbf(w):
    try:
        w.nodes[0].shape('1gbit')
        return None
    except RuntimeError as error:
        return str(error)
    finally:
        w.heal()


def _checkpoint(w):
    try:
        w.nodes[0].ask('SNAPSHOT.SAVE', timeout=10)
        return None
    except (OSError, ReplyError) as error:
        return str(error)


NEEDS = {
    'checkpoint': _checkpoint,
    'freezer': _group('freezer'), 'cpu': _group('cpu'), 'memory': _group('memory'), 'blkio': _blkio, 'strace': _strace,
    'delay': _delay, 'dup': _netdev_dup, 'tbf': _tbf,
    'loop': lambda w: None if w.loop else 'no loop devices',
    'clock': lambda w: None if w.clock_library else 'nemesis-clock.so is not built',
}


def missing(kind, world, known):
    """Why this kind cannot run here, or None.  `known` remembers what was found out."""
    for need in kind.needs:
        if need not in known:
            known[need] = NEEDS[need](world)
        if known[need]:
            return known[need]
    for command in kind.commands:
        if 'commands' not in known:
            known['commands'] = world.commands()
        if command not in known['commands']:
            return f'this lockd has no {command}'
    return None


class Running:
    """One fault at work; the handle its function gets."""

    def __init__(self, world, kind, rng, stretch):
        self.marks = world.marks()
        self.world, self.kind, self.random = world, kind, rng
        self.seconds = rng.uniform(*kind.hold) * stretch
        self.target, self.start_us, self.mark_us = '', None, None
        self.notes, self.problems = [], []

    def begin(self, target):
        self.marks = self.world.marks()
        self.target = ','.join(map(str, target)) if isinstance(target, (list, tuple)) else str(target)
        self.start_us = now_us()

    def majority(self):
        self.mark_us = now_us()

    def hold(self, part=1.0):
        timing.pause(self.seconds * part, 'the fault lasts')

    def follower(self):
        return self.random.choice(self.world.others(self.world.leader()))

    def followers(self, count):
        return self.random.sample(self.world.others(self.world.leader()), count)

    def problem(self, text):
        self.problems.append(text)

    def note(self, text):
        self.notes.append(text)


# ---- processes ----

@fault('kill-leader', changes=1)
def kill_leader(f):
    """kill -9 of the leader"""
    node = f.world.leader()
    f.begin(node)
    node.kill9()
    f.hold()


@fault('kill-follower', changes=1)
def kill_follower(f):
    """kill -9 of a follower"""
    node = f.follower()
    f.begin(node)
    node.kill9()
    f.hold()


def _kill(f, nodes):
    f.begin(nodes)
    for node in nodes:
        node.child.kill()
        node.may_end = True
    for node in nodes:
        node.child.wait()
    f.hold(0.5)
    for node in nodes:
        node.start()
    timing.wait_for('a majority to listen',
                    lambda: len([n for n in f.world.nodes if n.listening()]) >= f.world.majority_count, 30, every=0.005)
    f.majority()


@fault('kill-majority', since=FROM_MAJORITY)
def kill_majority(f):
    """kill -9 of a majority, the leader among it, at once"""
    leader = f.world.leader()
    _kill(f, [leader, *f.random.sample(f.world.others(leader), f.world.majority_count - 1)])


@fault('kill-all', since=FROM_MAJORITY)
def kill_all(f):
    """kill -9 of every node at once"""
    _kill(f, list(f.world.nodes))


@fault('kill-again', since=FROM_END, hold=(3.0, 5.0))
def kill_again(f):
    """the leader is killed, then the next, then the one after that"""
    f.begin('leaders')
    end = time.monotonic() + f.seconds
    while time.monotonic() < end:
        node = f.world.leader()
        node.kill9()
        node.start()
        node.wait_listening()
        f.world.leader()


@fault('stop-leader', changes=1)
def stop_leader(f):
    """SIGSTOP of the leader, then SIGCONT"""
    node = f.world.leader()
    f.begin(node)
    node.stop()
    f.hold()


@fault('stop-follower', changes=1)
def stop_follower(f):
    """SIGSTOP of a follower, then SIGCONT"""
    node = f.follower()
    f.begin(node)
    node.stop()
    f.hold()


@fault('stop-majority', since=FROM_END)
def stop_majority(f):
    """SIGSTOP of a majority, the leader among it"""
    leader = f.world.leader()
    nodes = [leader, *f.random.sample(f.world.others(leader), f.world.majority_count - 1)]
    f.begin(nodes)
    for node in nodes:
        node.stop()
    f.hold()


@fault('stutter-leader', since=FROM_END, hold=(2.0, 4.0))
def stutter_leader(f):
    """SIGSTOP and SIGCONT of one node again and again, about as long as its leases"""
    node = f.world.leader()
    f.begin(node)
    end = time.monotonic() + f.seconds
    while time.monotonic() < end:
        node.stop()
        timing.pause(f.random.uniform(0.1, 0.7), 'it stands still')
        f.world.heal()
        timing.pause(f.random.uniform(0.05, 0.3), 'it runs')


@fault('freeze-leader', changes=1, needs=('freezer',))
def freeze_leader(f):
    """the leader's control group is frozen, then thawed"""
    node = f.world.leader()
    f.begin(node)
    node.freeze()
    f.hold()


@fault('rolling-restart', changes=None, hold=(0.1, 0.3))
def rolling_restart(f):
    """every node in turn is ended by SIGTERM and started again"""
    nodes = list(f.world.nodes)
    f.random.shuffle(nodes)
    f.begin(nodes)
    for node in nodes:
        status = node.term()
        if status != 0:
            f.problem(f'{node} ended with status {status} after SIGTERM')
        f.hold()
        node.start()
        node.wait_listening()
        leader = f.world.leader().status(2)
        timing.wait_for(f'{node} to catch up',
                        lambda: (node.status() or {'applied': 0})['applied'] >= leader['applied'], 20)


# ---- the network: cuts ----

@fault('cut-leader', changes=1)
def cut_leader(f):
    """no packet between the leader and its peers; clients still reach it"""
    node = f.world.leader()
    f.begin(node)
    f.world.cut(f.world.both_ways([node], f.world.others(node)))
    f.hold()


@fault('isolate-leader', changes=1)
def isolate_leader(f):
    """no packet to or from the leader at all"""
    node = f.world.leader()
    f.begin(node)
    f.world.cut(f.world.both_ways([node], [*f.world.others(node), None]))
    f.hold()


@fault('cut-follower', changes=1)
def cut_follower(f):
    """no packet between a follower and its peers"""
    node = f.follower()
    f.begin(node)
    f.world.cut(f.world.both_ways([node], f.world.others(node)))
    f.hold()


@fault('cut-leader-out', changes=1)
def cut_leader_out(f):
    """nothing that the leader sends reaches its peers"""
    node = f.world.leader()
    f.begin(node)
    f.world.cut([(node, other) for other in f.world.others(node)])
    f.hold()


@fault('cut-leader-in', changes=1)
def cut_leader_in(f):
    """nothing that its peers send reaches the leader"""
    node = f.world.leader()
    f.begin(node)
    f.world.cut([(other, node) for other in f.world.others(node)])
    f.hold()


@fault('cut-follower-in', changes=1)
def cut_follower_in(f):
    """nothing that its peers send reaches a follower, which they hear"""
    node = f.follower()
    f.begin(node)
    f.world.cut([(other, node) for other in f.world.others(node)])
    f.hold()


@fault('split', changes=1)
def split(f):
    """the leader is on the smaller side of a split"""
    leader = f.world.leader()
    few = [leader, *f.random.sample(f.world.others(leader), len(f.world.nodes) - f.world.majority_count - 1)]
    f.begin(few)
    f.world.cut(f.world.both_ways(few, f.world.others(*few)))
    f.hold()


@fault('quorum-loss', changes=1, hold=(2.5, 4.0))
def quorum_loss(f):
    """only one follower, the hub, still reaches a majority; the leader and the rest reach the hub alone"""
    hub = f.follower()
    rest = f.world.others(hub)
    f.begin(hub)
    f.world.cut([(a, b) for a in rest for b in rest if a is not b])
    f.hold()


@fault('constrained-election', changes=1, hold=(2.5, 4.0))
def constrained_election(f):
    """the leader is cut off, and of the others only the hub, which is behind, reaches a majority"""
    leader = f.world.leader()
    hub = f.random.choice(f.world.others(leader))
    rest = f.world.others(hub, leader)
    f.world.cut([(other, hub) for other in f.world.others(hub)])
    timing.pause(0.2, 'the hub falls behind, for less than it takes to miss the leader')
    f.begin(hub)
    f.world.cut(f.world.both_ways([leader], f.world.others(leader)) + [(a, b) for a in rest for b in rest if a is not b])
    f.hold()


@fault('chained', changes=1, hold=(2.5, 4.0))
def chained(f):
    """the leader and one follower do not reach each other; everybody else reaches all"""
    leader = f.world.leader()
    other = f.random.choice(f.world.others(leader))
    f.begin([leader, other])
    f.world.cut(f.world.both_ways([leader], [other]))
    f.hold()


@fault('line', changes=1, hold=(2.5, 4.0))
def line(f):
    """each node reaches only its neighbours in a line; the leader is at one end"""
    leader = f.world.leader()
    nodes = [leader, *f.random.sample(f.world.others(leader), len(f.world.nodes) - 1)]
    f.begin(nodes)
    f.world.cut([(a, b) for i, a in enumerate(nodes) for j, b in enumerate(nodes) if abs(i - j) > 1])
    f.hold()


@fault('flap-link', since=FROM_END, hold=(2.0, 4.0))
def flap_link(f):
    """the leader's network interface goes down and up"""
    node = f.world.leader()
    f.begin(node)
    end = time.monotonic() + f.seconds
    while time.monotonic() < end:
        node.link(False)
        timing.pause(f.random.uniform(0.05, 0.5), 'the link is down')
        node.link(True)
        timing.pause(f.random.uniform(0.05, 0.4), 'the link is up')


@fault('link-down', changes=1)
def link_down(f):
    """the leader's network interface is down"""
    node = f.world.leader()
    f.begin(node)
    node.link(False)
    f.hold()


# ---- the network: it works badly ----

def _everywhere(f):
    return [(a, b) for a in f.world.nodes for b in f.world.nodes if a is not b]


@fault('loss', since=FROM_END)
def loss(f):
    """packets between nodes are lost at random"""
    percent = f.random.choice((2, 10, 25))
    f.begin(f'{percent}%')
    f.world.cut(_everywhere(f), f'numgen random mod 100 < {percent}')
    f.hold()


@fault('loss-leader', since=FROM_END)
def loss_leader(f):
    """packets of the leader, its clients' too, are lost at random"""
    node = f.world.leader()
    percent = f.random.choice((5, 20, 40))
    f.begin(f'{node} {percent}%')
    f.world.cut(f.world.both_ways([node], [*f.world.others(node), None]), f'numgen random mod 100 < {percent}')
    f.hold()


@fault('delay', since=FROM_END, needs=('delay',))
def delay(f):
    """packets between nodes take their time and overtake each other"""
    low, high = f.random.choice(((1, 10), (5, 40), (20, 120)))
    f.begin(f'{low}-{high}ms')
    for node in f.world.nodes:
        node.hold_packets(low, high, f.random.randrange(1 << 30))
    f.hold()


@fault('delay-leader', since=FROM_END, needs=('delay',))
def delay_leader(f):
    """packets that the leader gets from its peers take their time"""
    node = f.world.leader()
    f.begin(node)
    node.hold_packets(50, 250, f.random.randrange(1 << 30))
    f.hold()


@fault('big-lost', changes=1, hold=(2.5, 4.5))
def big_lost(f):
    """packets of more than 200 bytes from the leader to its peers are lost: heartbeats pass, data does not"""
    node = f.world.leader()
    f.begin(node)
    f.world.cut([(node, other) for other in f.world.others(node)], 'ether type ip meta length > 200')
    f.hold()


@fault('syn-lost')
def syn_lost(f):
    """no new connection between nodes; those of one follower are reset first"""
    node = f.follower()
    f.begin(node)
    f.world.cut(_everywhere(f), 'ether type ip tcp flags & (syn | ack) == syn')
    node.tool('ss', '-K', 'dport', '=', '7411', check=False)
    node.tool('ss', '-K', 'sport', '=', '7411', check=False)
    f.hold()


@fault('slow-net', since=FROM_END, needs=('tbf',))
def slow_net(f):
    """the leader's link carries 1 Mbit/s"""
    node = f.world.leader()
    f.begin(node)
    node.shape('1mbit')
    f.hold()


@fault('resets', since=FROM_END)
def resets(f):
    """connections are reset at random, everywhere"""
    f.begin('all')
    for node in f.world.nodes:
        node.rules('table inet resets {\nchain in {\ntype filter hook input priority 0; policy accept;\n'
                   'ip protocol tcp numgen random mod 1000 < 5 reject with tcp reset\n}\n}\n')
    f.hold()


DUPLICATE = ('table netdev twice {\nchain in {\ntype filter hook ingress device "eth0" priority 0; policy accept;\n'
             'numgen random mod 100 < %d dup to "eth0"\n}\n}\n')


@fault('duplicates', since=FROM_END, needs=('dup',))
def duplicates(f):
    """packets arrive twice"""
    f.begin('all')
    for node in f.world.nodes:
        node.rules(DUPLICATE % 25)
    f.hold()


@fault('garbage')
def garbage(f):
    """strangers send garbage to the ports of all nodes"""
    f.begin('all')
    f.stopping = threading.Event()

    def talk():
        rng = random.Random(f.random.random())
        while not f.stopping.is_set():
            node = rng.choice(f.world.nodes)
            host, port = (node.peer_address if rng.random() < 0.7 else node.address).rsplit(':', 1)
            try:
                with socket.create_connection((host, int(port)), 0.3) as link:
                    link.settimeout(0.1)
                    link.sendall(rng.choice((rng.randbytes(rng.randrange(1, 3000)), b'\0' * 500, b'GET / HTTP/1.0\r\n\r\n',
                                             b'\xff' * 64, b'*2147483647\r\n', b'*1\r\n$-5\r\n')))
                    link.recv(100)
            except OSError:
                pass
            f.stopping.wait(0.01)
    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    f.hold()
    f.stopping.set()
    thread.join()


# ---- clocks ----

@fault('wall-clock', needs=('clock',))
def wall_clock(f):
    """the wall clocks of all nodes jump, forth and back"""
    f.begin('all')
    for node in f.world.nodes:
        f.world.undo(lambda node=node: node.clock.set(wall_s=0))
    for _ in range(6):
        for node in f.world.nodes:
            node.clock.set(wall_s=f.random.choice((0, -7200, 3600, 86400 * 400, -86400 * 4000, 0.5, -0.5)))
        f.hold(1 / 6)


@fault('clock-rate', needs=('clock',))
def clock_rate(f):
    """the clocks of all nodes run at rates of their own, within the bound"""
    f.begin('all')
    half = f.world.drift_ppm * 0.45
    for node in f.world.nodes:
        f.world.undo(lambda node=node: node.clock.set(rate_ppm=0))
        node.clock.set(rate_ppm=int(f.random.choice((-half, half, f.random.uniform(-half, half)))))
    f.hold()


@fault('clock-rate-wild', since=FROM_END, needs=('clock',), loose=True)
def clock_rate_wild(f):
    """the clocks of two nodes run far beyond the bound; only what the log orders is judged"""
    nodes = [f.world.leader(), f.follower()]
    f.begin(nodes)
    for node in nodes:
        f.world.undo(lambda node=node: node.clock.set(rate_ppm=0))
        node.clock.set(rate_ppm=f.random.choice((-600000, -300000, 500000, 1500000)))
    f.hold()


# ---- disks ----

@fault('disk-stall', changes=1, needs=('loop',), hold=(3.0, 5.0))
def disk_stall(f):
    """the leader's disk takes no write any more, for a while"""
    node = f.world.leader()
    f.begin(node)
    node.stall_disk()
    f.hold()


@fault('disk-stall-follower', changes=1, needs=('loop',))
def disk_stall_follower(f):
    """a follower's disk takes no write any more, for a while"""
    node = f.follower()
    f.begin(node)
    node.stall_disk()
    f.hold()


@fault('disk-stall-majority', since=FROM_END, needs=('loop',))
def disk_stall_majority(f):
    """the disks of a majority take no write any more, for a while"""
    leader = f.world.leader()
    nodes = [leader, *f.random.sample(f.world.others(leader), f.world.majority_count - 1)]
    f.begin(nodes)
    for node in nodes:
        node.stall_disk()
    f.hold()


@fault('disk-full', needs=('loop',))
def disk_full(f):
    """the leader's disk is full; what halted starts again when there is room"""
    node = f.world.leader()
    f.begin(node)
    node.may_end = True
    node.fill_disk(f.random.choice((0, 200000, 1000000)))
    f.hold()


@fault('disk-full-majority', since=FROM_END, needs=('loop',))
def disk_full_majority(f):
    """the disks of a majority are full"""
    leader = f.world.leader()
    nodes = [leader, *f.random.sample(f.world.others(leader), f.world.majority_count - 1)]
    f.begin(nodes)
    for node in nodes:
        node.may_end = True
        node.fill_disk(f.random.choice((0, 200000, 1000000)))
    f.hold()


@fault('disk-throttle', changes=1, needs=('blkio',))
def disk_throttle(f):
    """the leader's disk writes 64 KiB a second"""
    node = f.world.leader()
    f.begin(node)
    node.throttle_disk(65536)
    f.hold()


@fault('slow-sync', needs=('strace',))
def slow_sync(f):
    """each fdatasync of the leader takes 150 ms more"""
    node = f.world.leader()
    f.begin(node)
    node.inject('fdatasync:delay_exit=150000')
    f.hold()


@fault('slow-write', needs=('strace',))
def slow_write(f):
    """each write of the leader to its disk takes 20 ms more"""
    node = f.world.leader()
    f.begin(node)
    node.inject('pwrite64:delay_exit=20000')
    f.hold()


@fault('sync-error', changes=1, needs=('strace',))
def sync_error(f):
    """an fdatasync of the leader fails: it must end itself and lose nothing"""
    node = f.world.leader()
    f.begin(node)
    node.may_end = True
    node.inject('fdatasync:error=EIO:when=3')
    status = node.wait_end(5)
    if status is None:
        f.problem(f'{node} works on after a failed fdatasync')
    elif status <= 0:
        f.problem(f'{node} ended with status {status} after a failed fdatasync')
    f.hold()


@fault('write-error', changes=1, needs=('strace',))
def write_error(f):
    """a write to the disk of a follower fails: it must end itself"""
    node = f.follower()
    f.begin(node)
    node.may_end = True
    node.inject('pwrite64,pwritev,writev:error=ENOSPC:when=7')
    status = node.wait_end(5)
    if status is not None and status <= 0:
        f.problem(f'{node} ended with status {status} after a failed write')
    f.hold()


# ---- the machine ----

@fault('slow-cpu', since=FROM_END, needs=('cpu',))
def slow_cpu(f):
    """the leader gets 1 to 3 % of a processor"""
    node = f.world.leader()
    f.begin(node)
    node.throttle_cpu(f.random.choice((1, 2, 3)))
    f.hold()


@fault('memory', changes=1, needs=('memory',))
def memory(f):
    """the leader may have no more memory than it has; the kernel ends it when it needs more"""
    node = f.world.leader()
    f.begin(node)
    node.may_end = True
    node.squeeze_memory()
    f.hold()


# ---- stores and members ----

@fault('wipe', changes=1)
def wipe(f):
    """a follower loses its disk: it must not vote; then it gets it back"""
    node = f.follower()
    f.begin(node)
    node.kill9()
    aside = node.disk / 'aside'
    os.rename(node.data, aside)

    def give_back():
        if node.running():
            node.kill9()
        shutil.rmtree(node.data, ignore_errors=True)
        os.rename(aside, node.data)
    f.world.undo(give_back)
    node.start()
    node.wait_listening()

    def role():
        status = node.status()
        return status and status['role'] == 'outcast'
    try:
        timing.wait_for('the empty store to know that it is none of the cluster', role, 5)
    except AssertionError:
        f.problem(f'an empty store in the place of {node} says that it is {(node.status() or {}).get("role")}')
    f.hold()


@fault('hand-over', hold=(0.2, 0.4), commands=('NODE.TRANSFER',))
def hand_over(f):
    """the leader gives leadership away, a few times"""
    f.begin('leaders')
    times = []
    for _ in range(5):
        target = f.follower()
        asked = now_us()
        try:
            f.random.choice(f.world.nodes).ask('NODE.TRANSFER', target.number, timeout=10)
            times.append((now_us() - asked) / 1000)
        except ReplyError as error:
            f.note(str(error))
        f.hold()
    f.note('handed over in ' + ', '.join(f'{ms:.0f}' for ms in times) + ' ms')


@fault('hand-over-to-dying', changes=2, commands=('NODE.TRANSFER',))
def hand_over_to_dying(f):
    """the leader gives leadership to a node that is killed at that moment"""
    leader = f.world.leader()
    target = f.random.choice(f.world.others(leader))
    f.begin([leader, target])
    with Client(leader.address, 10) as client:
        client.send('NODE.TRANSFER', target.number)
        timing.pause(f.random.choice((0, 0.001, 0.003, 0.01)), 'it is under way')
        target.kill9()
        f.hold()


@fault('hand-over-cut', changes=2, commands=('NODE.TRANSFER',))
def hand_over_cut(f):
    """the leader gives leadership away and is cut off from its peers at that moment"""
    leader = f.world.leader()
    target = f.random.choice(f.world.others(leader))
    f.begin([leader, target])
    with Client(leader.address, 10) as client:
        client.send('NODE.TRANSFER', target.number)
        timing.pause(f.random.choice((0, 0.001, 0.003)), 'it is under way')
        f.world.cut(f.world.both_ways([leader], f.world.others(leader)))
        f.hold()


def _save_everywhere(f, nodes):
    """A checkpoint on each, twice, with some load between: the log before the first one is cut."""
    for _ in range(2):
        links = [Client(node.address, 20) for node in nodes]
        for link in links:
            link.send('SNAPSHOT.SAVE')
        for node, link in zip(nodes, links):
            reply = link.receive()
            link.close()
            if reply != 'OK':
                f.problem(f'SNAPSHOT.SAVE on {node}: {reply}')
        timing.pause(0.3, 'some load between the checkpoints')


def _behind_the_cut(f, node):
    """End the node, and cut the log of all others behind what it has."""
    had = (node.status(2) or {'applied': 0})['applied']
    node.kill9()
    f.hold(0.5)
    others = f.world.others(node)
    _save_everywhere(f, others)

    def cut():
        return all((n.status() or {'log-cut': 0})['log-cut'] > had for n in others)
    try:
        timing.wait_for('the logs to be cut', cut, 10)
    except AssertionError:
        f.problem(f'{node} had slot {had}; the logs begin after ' +
                  ', '.join(str((n.status() or {}).get('log-cut')) for n in others))


def _caught_up(f, node, seconds=10):
    node.wait_listening()
    applied = f.world.leader().status(2)['applied']
    timing.wait_for(f'{node} to load a snapshot', lambda: (node.status() or {'applied': 0})['applied'] >= applied, seconds)


@fault('lagging', changes=1, hold=(1.0, 2.0), needs=('checkpoint',))
def lagging(f):
    """a follower comes back after the log was cut behind it: it needs a snapshot"""
    node = f.follower()
    f.begin(node)
    _behind_the_cut(f, node)
    node.start()
    _caught_up(f, node)


@fault('lagging-killed', hold=(1.0, 2.0), needs=('checkpoint',))
def lagging_killed(f):
    """a follower that loads a snapshot is killed again and again, then the leader that sends it"""
    node = f.follower()
    f.begin(node)
    _behind_the_cut(f, node)
    for _ in range(4):
        node.start()
        timing.pause(f.random.uniform(0.02, 0.3), 'it is loading, perhaps')
        node.kill9()
    node.start()
    leader = f.world.leader()
    timing.pause(f.random.uniform(0.05, 0.3), 'it is loading, perhaps')
    leader.kill9()
    _caught_up(f, node)


@fault('checkpoint-killed', since=FROM_END, needs=('checkpoint',))
def checkpoint_killed(f):
    """all nodes write checkpoints, some are killed while they do"""
    f.begin('all')
    end = time.monotonic() + f.seconds
    while time.monotonic() < end:
        links = []
        for node in f.world.nodes:
            try:
                links.append(Client(node.address, 5))
                links[-1].send('SNAPSHOT.SAVE')
            except OSError:
                pass
        timing.pause(f.random.uniform(0.0, 0.05), 'they are writing')
        victims = f.random.sample(f.world.nodes, f.random.choice((1, 2)))
        for node in victims:
            node.kill9()
        for link in links:
            link.close()
        for node in victims:
            node.start()
        for node in victims:
            node.wait_listening()


def _insist(f, nodes, *words):
    """The reply to a command that is refused while an earlier change is not yet in effect, or nobody leads."""
    said = []

    def taken():
        try:
            said[:] = [f.random.choice(nodes).ask(*words, timeout=5)]
            return True
        except (OSError, ReplyError) as error:
            said[:] = [error]
            return False
    try:
        timing.wait_for(words[0], taken, 15, every=0.05)
    except AssertionError:
        raise RuntimeError(f'{" ".join(map(str, words))}: {said[0]}') from None


def _replace(f, node, during=lambda: None):
    """Take `node` out, empty its disk, and bring it in again as the new store that it is then."""
    w = f.world
    f.begin(node)
    _insist(f, w.others(node), 'NODE.REMOVE', node.number)
    f.hold(0.5)
    node.kill9()
    shutil.rmtree(node.data)
    during()
    node.start()
    node.wait_listening()
    f.hold(0.5)
    store = (node.status(5) or {})['store-id']
    _insist(f, [n for n in w.others(node) if n.running()], 'NODE.ADD', node.number, node.peer_address, store)

    def member():
        status = node.status()
        return status and status['role'] in ('follower', 'leader')
    timing.wait_for(f'{node} to be a member again', member, 20)
    _caught_up(f, node, 20)


MEMBERSHIP = ('NODE.ADD', 'NODE.REMOVE')


@fault('replace-follower', changes=1, hold=(0.5, 1.5), commands=MEMBERSHIP)
def replace_follower(f):
    """a follower is removed and added again with an empty disk"""
    _replace(f, f.follower())


@fault('replace-leader', changes=2, hold=(0.5, 1.5), commands=MEMBERSHIP)
def replace_leader(f):
    """the leader is removed and added again with an empty disk"""
    _replace(f, f.world.leader())


@fault('replace-and-kill', hold=(0.5, 1.5), commands=MEMBERSHIP)
def replace_and_kill(f):
    """a follower is replaced while the leader is killed and comes back"""
    node = f.follower()

    def during():
        leader = f.world.leader()
        leader.kill9()
        leader.start()
    _replace(f, node, during)


__all__ = ['FAULTS']
