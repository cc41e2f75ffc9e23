"""The process is killed at the N-th write, sync, rename or cut of a file, for N = 1, 2 ... until it survives; each time it
starts again and everything that was acknowledged is there.  And: the power fails, on a file system of its own.

The short form takes a sample of the points; with HOLDFAST_LONG=1 every one of them."""
import os
import random
import shutil
import subprocess

import pytest

from harness import process, timing
from harness.resp import ReplyError

CALLS = 'pwrite64,pwritev,fdatasync,fsync,rename,renameat,renameat2,ftruncate,unlink,unlinkat,mkdir'
# A node of one that is killed all the time should not wait long for itself.
QUICK = dict(heartbeat_ms=10, leader_lease_ms=50, election_spread_ms=10)


def killed_at(number, folder, calls=CALLS):
    """Wrapper that kills every thread or process of the node at its own N-th such call."""
    return ['strace', '-D', '-f', '-qq', '-o', os.path.join(str(folder), 'strace'), '-e', f'trace={calls}',
            '-e', f'inject={calls}:signal=KILL:when={number}']


class Ledger:
    """What was asked and what was acknowledged: a key holds its last acknowledged value, or the one asked after it."""

    def __init__(self):
        self.acknowledged, self.asked, self.token, self.lock, self.count = {}, {}, 0, None, 0

    def write(self, client, count):
        for _ in range(count):
            self.count += 1
            key, value = f'k{self.count % 7}', f'{self.count}:'.ljust(60 + self.count * 37 % 900, 'v')
            self.asked.setdefault(key, set()).add(value)
            assert client('SET', key, value) == 'OK'
            self.acknowledged[key] = value
            self.asked[key] = set()
        lease = client('LEASE.GRANT', 60000)
        token = client('LOCK.ACQUIRE', f'lock{self.count}', 'LEASE', lease)
        assert token > self.token, 'a fence went back'
        self.token, self.lock = token, f'lock{self.count}'

    def audit(self, client):
        if self.lock:
            assert client('LOCK.CHECK', self.lock, self.token) == 1, 'the last grant is gone'
        for key in set(self.acknowledged) | set(self.asked):
            value, last = client('GET', key), self.acknowledged.get(key)
            allowed = {last} | self.asked.get(key, set())
            assert value in allowed, f'{key}: {value!r:.40} is neither what was acknowledged ({last!r:.40}) nor asked later'
            if value is not None:
                self.acknowledged[key], self.asked[key] = value, set()


def gone(node):
    """A process that is being killed still looks alive for a moment."""
    try:
        node.process.child.wait(5)
    except subprocess.TimeoutExpired:
        return False
    return True


def points(limit, seed):
    """Every point, or a sample of those below `limit`; with the last the caller learns whether a run was clean."""
    if timing.LONG:
        return range(1, 100000)
    first = [1, 2, 3]
    return first + sorted(random.Random(seed).sample(range(4, limit), 9))


def test_a_node_killed_at_any_call_loses_nothing(cluster, tmp_path):
    """Commits, checkpoints and the cut of the log."""
    one = cluster(1, start=False, checkpoint_bytes=4000, **QUICK)
    node, ledger, died = one.nodes[0], Ledger(), 0
    for number in points(90, 1):
        node.start(wrapper=killed_at(number, tmp_path))
        try:
            node.process.wait_line(r'lockd listening')
            one.wait_leader()
            with node.client(30) as client:
                for _ in range(6):
                    ledger.write(client, 5)
                client.ask('SNAPSHOT.SAVE')
                ledger.write(client, 2)
            clean = True
        except (OSError, AssertionError, ReplyError):
            clean = not gone(node)
            if clean:
                raise
        died += not clean
        node.kill9()
        assert not node.process.matches(r'fatal|cannot-start|store failed|halted'), node.process.text()[-2000:]
        node.start().wait_listening()
        one.wait_leader()
        with node.client(30) as client:
            ledger.audit(client)
            ledger.write(client, 1)
        node.kill9()
        if clean:
            break
    assert died >= (20 if timing.LONG else 5), 'hardly a kill: has the list of calls become wrong?'
    assert os.path.exists(os.path.join(node.data, 'checkpoint'))


def test_a_call_that_fails_ends_the_node_and_loses_nothing(cluster, tmp_path):
    """The N-th write or sync of the log fails, whichever it is; what is on the disk is whole and is believed again."""
    one = cluster(1, start=False, checkpoint_bytes=0, **QUICK)
    node, ledger = one.nodes[0], Ledger()
    node.start().wait_listening()
    one.wait_leader()
    assert node.term() == 0
    died = 0
    for number in range(1, 40 if timing.LONG else 12):
        for calls, error in (('pwrite64,pwritev', 'ENOSPC'), ('fdatasync', 'EIO')):
            node.start(wrapper=['strace', '-D', '-f', '-qq', '-o', str(tmp_path / 'strace'), '-e', f'trace={calls}',
                                '-e', f'inject={calls}:error={error}:when={number}'])
            timing.wait_for('it to lead or to end', lambda: one.leader() or not node.process.running(), 30 * timing.SLOW)
            try:
                with node.client(30) as client:
                    for _ in range(20):
                        ledger.write(client, 3)
            except (OSError, AssertionError, ReplyError):
                assert gone(node)
                died += 1
            node.kill9()
            node.start().wait_listening()
            one.wait_leader()
            with node.client(30) as client:
                ledger.audit(client)
                ledger.write(client, 1)
            assert node.term() == 0
    assert died >= 10, 'hardly a failure: has the list of calls become wrong?'


@pytest.mark.parametrize('call', ['openat', 'write', 'pwrite64', 'fsync', 'rename', 'exit_group'])
def test_the_process_that_writes_a_checkpoint_dies_at_any_call(cluster, tmp_path, call):
    """And so does the node, right after it."""
    one = cluster(1, start=False, checkpoint_bytes=0, **QUICK)
    node, ledger, died = one.nodes[0], Ledger(), 0
    for number in range(1, 1000):
        node.start().wait_listening()
        one.wait_leader()
        with node.client(30) as client:
            ledger.audit(client)
            ledger.write(client, 3)
            strace = process.Process(f'strace-{call}-{number}', [
                'strace', '-f', '-p', node.process.pid, '-o', '/dev/null', '-e', f'trace={call}', '-e',
                f'inject={call}:signal=KILL:when={number}'], tmp_path)
            strace.wait_line(r'attached')
            try:
                clean = client.ask('SNAPSHOT.SAVE') == 'OK'
            except OSError:
                clean = False
        node.kill9()
        strace.wait()
        died += not clean
        if clean:
            break
    assert died >= 1, f'nobody calls {call}'
    node.start().wait_listening()
    one.wait_leader()
    with node.client(30) as client:
        ledger.audit(client)


def ended(node, pattern):
    """Wait for a line, or for the end of the process; True if it lives."""
    timing.wait_for('a line or an end', lambda: node.process.matches(pattern) or not node.process.running(), 30 * timing.SLOW)
    return node.process.running()


def test_a_snapshot_is_installed_whole_or_not_at_all(cluster, tmp_path):
    three = cluster(3, checkpoint_bytes=0)
    away, ledger = three.followers()[0], Ledger()
    died = 0
    for number in list(points(40, 2))[::1 if timing.LONG else 4]:
        if away.up():
            away.kill9()
        with three.wait_leader().client(30) as client:
            for _ in range(2):
                ledger.write(client, 40)
                assert client('SNAPSHOT.SAVE') == 'OK'
        for other in three.nodes:  # each has a log that begins after what `away` has
            if other.up() and other is not three.wait_leader():
                with other.client(30) as client:
                    assert client('SNAPSHOT.SAVE') == 'OK'
        with three.wait_leader().client(30) as client:
            ledger.write(client, 5)
        away.start(wrapper=killed_at(number, tmp_path))
        clean = ended(away, r'snapshot installed|cannot-start')
        if clean:
            leader = three.wait_leader()
            timing.wait_for('it to catch up', lambda: not away.process.running() or (away.status() or {}).get('revision')
                            == (leader.status() or {}).get('revision'))
            clean = away.process.running()
        died += not clean
        away.kill9()
        assert not away.process.matches(r'fatal|cannot-start|store failed|halted'), away.process.text()[-2000:]
        away.start().wait_listening()
        leader = three.wait_leader()
        timing.wait_for('it to catch up', lambda: (away.status() or {}).get('revision')
                        == (leader.status() or {}).get('revision'), 30 * timing.SLOW)
        with away.client(30) as client:
            assert client('READONLY') == 'OK'  # its own state, not the leader's
            ledger.audit(client)
        if clean:
            break
    assert died >= (5 if timing.LONG else 1)


def test_a_membership_change_is_whole_or_not_there(cluster, tmp_path):
    """A follower dies while a fourth node is added and removed; it comes back with the members that the others have."""
    three = cluster(3)
    victim, ledger, died, store = three.followers()[0], Ledger(), 0, 0x100

    def in_effect(client, *command):
        timing.wait_for(' '.join(map(str, command)), lambda: client.ask(*command) == 'OK')
        client.pipeline([('SET', 'fill', number) for number in range(20)])
        for _ in range(70):  # one after the other: each takes a slot of its own
            assert client('SET', 'fill', 'x') == 'OK'

    for number in list(points(150, 3))[::1 if timing.LONG else 3]:
        victim.kill9()
        victim.start(wrapper=killed_at(number, tmp_path))
        clean = ended(victim, r'lockd listening')
        leader = three.wait_leader()

        def takes_part():  # else it would learn of it all in a commit or two, which is too few to die at
            return not victim.process.running() or (
                (victim.status() or {}).get('revision') == (leader.status() or {}).get('revision'))
        with leader.client(30) as client:
            ledger.write(client, 2)
            timing.wait_for('it to take part or to die', takes_part, 30 * timing.SLOW)
            store += 1
            in_effect(client, 'NODE.ADD', 4, '127.0.0.1:9', f'{store:016x}')
            ledger.write(client, 2)
            in_effect(client, 'NODE.REMOVE', 4)
        # a clean stop writes all that waits first: it dies at that point, or there is no such point
        clean = clean and victim.process.running() and victim.term() == 0
        died += not clean
        if victim.process.running():
            victim.kill9()
        assert not victim.process.matches(r'fatal|cannot-start|store failed|halted'), victim.process.text()[-2000:]
        victim.start().wait_listening()
        leader = three.wait_leader()

        def agrees():
            ours, theirs = victim.status() or {}, leader.status() or {}
            names = ['revision', 'cluster-id'] + [name for name in theirs if 'member' in name or name in ('voters', 'learners')]
            return all(ours.get(name) == theirs.get(name) for name in names)
        timing.wait_for('it to agree', agrees, 30 * timing.SLOW)
        with victim.client(30) as client:
            assert client('READONLY') == 'OK'
            ledger.audit(client)
        if clean:
            break
    assert died >= (10 if timing.LONG else 2)


# ---- power loss ----

class Image:
    """An ext4 of its own in a file: what a copy of the file holds is what a power loss leaves."""

    def __init__(self, folder):
        self.file, self.at = os.path.join(str(folder), 'image'), os.path.join(str(folder), 'mount')
        self.mounted = False
        os.mkdir(self.at)

    def make(self, mib):
        with open(self.file, 'wb') as file:
            file.truncate(mib << 20)
        subprocess.run(['mkfs.ext4', '-q', '-F', self.file], check=True)

    def mount(self):
        done = subprocess.run(['mount', '-o', 'loop', self.file, self.at], capture_output=True, text=True)
        self.mounted = done.returncode == 0
        return done.stderr.strip()

    def umount(self):
        if self.mounted:
            subprocess.run(['umount', self.at], check=True)
        self.mounted = False


@pytest.fixture
def images(tmp_path):
    made = []

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        made.append(Image(folder))
        return made[-1]
    yield make
    process.end_all()  # who works on a mounted one
    for image in made:
        image.umount()


def test_a_power_loss_loses_nothing_that_was_acknowledged(cluster, images, tmp_path):
    if os.geteuid() != 0 or not shutil.which('mkfs.ext4'):
        pytest.skip('needs root and mkfs.ext4 to mount a file system of its own')
    image = images('before')
    image.make(96)
    why = image.mount()
    if not image.mounted:
        pytest.skip(f'a loop device cannot be mounted here: {why}')
    one = cluster(1, start=False, checkpoint_bytes=20000, log_map_bytes=32 << 20, **QUICK)
    node, ledger = one.nodes[0], Ledger()
    node.data = os.path.join(image.at, 'data')
    node.write_config()
    rng = random.Random(3)
    for loss in range(40 if timing.LONG else 8):
        node.start()
        one.wait_leader()
        with node.client(30) as client:
            ledger.audit(client)
            for _ in range(rng.randint(1, 40)):
                ledger.write(client, rng.randint(1, 8))
        node.kill9()
        # now between two commits: what was acknowledged after the one is not to wait for the other
        node.start(wrapper=killed_at(rng.randint(8, 40), tmp_path, 'fdatasync'))
        try:
            one.wait_leader()
            with node.client(30) as client:
                for _ in range(30):
                    ledger.write(client, 3)
        except (OSError, AssertionError, ReplyError):
            assert gone(node)
        node.kill9()  # the page cache of the mounted file system now holds what was never synced
        after = images(f'after{loss}')
        subprocess.run(['cp', '--sparse=always', image.file, after.file], check=True)
        image.umount()
        os.unlink(image.file)
        assert not after.mount()
        node.data = os.path.join(after.at, 'data')
        node.write_config()
        image = after
    node.start().wait_listening()
    one.wait_leader()
    with node.client(30) as client:
        ledger.audit(client)
    assert node.term() == 0
