"""The state on disk: written beside the work, believed only whole, and enough to cut the log behind it."""
import os
import signal
import subprocess

import pytest

from harness import process, timing
from harness.process import binary
from harness.resp import pairs


def info(node):
    with node.client() as client:
        return dict(line.split(':', 1) for line in client('INFO').splitlines() if ':' in line)


def fill(client, count, value, size=400):
    for number in range(count):
        assert client('SET', f'k{number % 60}', f'{value}:{number}:'.ljust(size, '.')) == 'OK'


def state(client):
    return {f'k{number}': client('GET', f'k{number}') for number in range(60)}


def caught_up(cluster, node):
    leader = cluster.wait_leader()
    timing.wait_for(f'node {node.number} to catch up',
                    lambda: (node.status() or {}).get('revision') == (leader.status() or {}).get('revision'))


def test_a_node_starts_from_its_checkpoint_and_the_rest_of_its_log(cluster):
    one = cluster(1, checkpoint_bytes=30000)
    node = one.nodes[0]
    with node.client(30) as client:
        token = client('LOCK.ACQUIRE', 'lock', 'LEASE', client('LEASE.GRANT', 60000))
        fill(client, 300, 'a')
        timing.wait_for('two checkpoints', lambda: int(info(node)['checkpoints_made']) >= 2)
        fill(client, 30, 'b')
        before, revision = state(client), client('NODE.STATUS')
    said = info(node)
    assert int(said['log_cut']) > 0
    node.kill9()
    with open(os.path.join(node.data, 'checkpoint.tmp'), 'wb'):
        pass  # what a crash may leave: nobody reads it
    node.start().wait_listening()
    opened = node.process.wait_line(r'store opened .*checkpoint=(\d+) slots=(\d+)')
    assert int(opened[1]) >= int(said['log_cut']) and int(opened[2]) >= int(opened[1])
    one.wait_leader()
    with node.client(30) as client:
        assert state(client) == before
        assert client('LOCK.CHECK', 'lock', token) == 1
        assert client('SET', 'after', '1') == 'OK'
        assert pairs(client('NODE.STATUS'))['revision'] > pairs(revision)['revision']
    assert 'checkpoint.tmp' not in os.listdir(node.data) or int(info(node)['checkpoint_in_progress'])


def test_a_node_that_was_away_too_long_gets_a_snapshot(cluster):
    three = cluster(3, checkpoint_bytes=30000)
    away = three.followers()[0]
    away.kill9()
    with three.wait_leader().client(30) as client:
        fill(client, 400, 'a')
        for _ in range(2):
            assert client('SNAPSHOT.SAVE') == 'OK'
            fill(client, 30, 'b')
        before = state(client)
    away.start().wait_listening()
    away.process.wait_line(r'snapshot installed')
    caught_up(three, away)
    assert int(info(away)['snapshots_installed']) == 1
    away.kill9()  # and what it installed is what it starts from
    away.start().wait_listening()
    assert int(away.process.wait_line(r'store opened .*checkpoint=(\d+)')[1]) > 0
    caught_up(three, away)
    others = [node for node in three.nodes if node is not away]
    others[0].kill9()  # now its vote and its state are needed
    three.wait_leader()
    assert {key: three.call('GET', key) for key in before} == before


def test_a_checkpoint_that_went_bad_under_a_running_node_is_written_again(cluster):
    """D4.  All is still there in memory; a node that needs the bytes finds out first, and nobody else writes meanwhile."""
    three = cluster(3, checkpoint_bytes=30000)
    away = three.followers()[0]
    away.kill9()
    others = [node for node in three.nodes if node is not away]
    with three.wait_leader().client(30) as client:
        fill(client, 400, 'a')
    for node in others:
        caught_up(three, node)
        with node.client(30) as client:
            for _ in range(2):
                assert client('SNAPSHOT.SAVE') == 'OK'
                assert client('SET', 'between', node.number) == 'OK'
        with open(os.path.join(node.data, 'checkpoint'), 'r+b') as file:
            file.seek(9000)
            byte = file.read(1)[0]
            file.seek(9000)
            file.write(bytes([byte ^ 1]))
    away.start().wait_listening()
    away.process.wait_line(r'snapshot installed')
    caught_up(three, away)
    mended = [node for node in others if node.process.matches(r'checkpoint damaged .*checksum')]
    assert mended
    for node in mended:
        node.kill9()
        node.start().wait_listening()
        caught_up(three, node)


def children(pid):
    with open(f'/proc/{pid}/task/{pid}/children') as file:
        return [int(word) for word in file.read().split()]


def test_killing_the_process_that_writes_harms_nobody(cluster):
    """B17.  Whenever it is met, it is killed; the node goes on, and once it is left alone it has a checkpoint."""
    one = cluster(1, checkpoint_bytes=0)
    node = one.nodes[0]
    with node.client(30) as client, node.client(30) as asker:
        fill(client, 60, 'a', 200000)
        killed = 0
        for _ in range(200):
            asker.send('SNAPSHOT.SAVE')
            met = timing.wait_for('it', lambda: children(node.process.pid) or asker.socket in ready(asker.socket), every=0.0002)
            if met is not True and met:
                try:
                    os.kill(met[0], signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    pass
            asker.receive()
            assert client('SET', 'work', killed) == 'OK'
            if killed >= 5:
                break
        assert killed >= 5
        node.process.wait_line(r'checkpoint failed .*signal 9')
        timing.wait_for('a checkpoint', lambda: asker.ask('SNAPSHOT.SAVE') == 'OK', 30 * timing.SLOW)
        before = state(client)
    node.kill9()
    node.start().wait_listening()
    one.wait_leader()
    with node.client(30) as client:
        assert state(client) == before


def ready(sock):
    import select
    return select.select([sock], [], [], 0)[0]


@pytest.mark.parametrize('damage', ['flip', 'short', 'empty', 'missing'])
def test_a_damaged_checkpoint_is_refused(cluster, damage):
    one = cluster(1, checkpoint_bytes=0)
    node = one.nodes[0]
    with node.client(30) as client:
        fill(client, 100, 'a')
        assert client('SNAPSHOT.SAVE') == 'OK'
        fill(client, 100, 'a')
        assert client('SNAPSHOT.SAVE') == 'OK'
        timing.wait_for('the log to be cut', lambda: int(info(node)['log_cut']) > 0)
        fill(client, 10, 'b')
    assert node.term() == 0
    path = os.path.join(node.data, 'checkpoint')
    whole = open(path, 'rb').read()
    if damage == 'missing':
        os.unlink(path)
    else:
        bent = {'flip': whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:], 'short': whole[:-1], 'empty': b''}[damage]
        with open(path, 'wb') as file:
            file.write(bent)
    done = subprocess.run([binary('lockd'), '--config', node.config], capture_output=True, text=True, timeout=timing.DEFAULT_S)
    assert done.returncode == 1
    assert node.data in done.stderr and 'must not vote' in done.stderr and 'start again' in done.stderr, done.stderr
    with open(path, 'wb') as file:
        file.write(whole)
    node.start().wait_listening()
    one.wait_leader()
    assert one.call('GET', 'k1').startswith('b:1:')


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 MiB in memory."""
    at = tmp_path / 'disk'
    at.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=40m', 'none', str(at)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f'a file system cannot be mounted here: {done.stderr.strip()}')
    yield str(at)
    process.end_all()
    subprocess.run(['umount', str(at)], check=True)


def test_a_full_disk_is_refused_before_it_happens(cluster, small_disk):
    """D3: what takes room is refused while there is still some left; what gives some back is not; and it passes."""
    one = cluster(1, start=False, checkpoint_bytes=0, disk_reserve=8 << 20)
    node = one.nodes[0]
    node.data = os.path.join(small_disk, 'data')
    node.write_config()
    ballast = os.path.join(small_disk, 'ballast')
    with open(ballast, 'wb') as file:
        file.write(bytes(20 << 20))
    node.start().wait_listening()
    one.wait_leader()
    with node.client(30) as client:
        lease, written, refused = client('LEASE.GRANT', 60000), 0, None
        while refused is None and written < 400:
            answer = client.ask('SET', f'k{written}', 'x' * 100000)
            if answer == 'OK':
                written += 1
            else:
                refused = answer
        assert refused is not None and refused.code == 'DISKFULL' and 'disk-reserve' in refused.text, refused
        assert int(info(node)['disk_full']) == 1
        assert client('GET', 'k0') == 'x' * 100000
        assert client('DEL', 'k0') == 1
        assert client('LEASE.KEEPALIVE', lease)[0] > 0
        assert client('LEASE.REVOKE', lease) == 1
        os.unlink(ballast)
        timing.wait_for('it to take writes again', lambda: client.ask('SET', 'k0', 'again') == 'OK')
        assert int(info(node)['disk_full']) == 0
    assert node.term() == 0


def test_a_checkpoint_that_does_not_fit_is_told_and_tried_again(cluster, small_disk):
    one = cluster(1, start=False, checkpoint_bytes=0, disk_reserve=0)
    node = one.nodes[0]
    node.data = os.path.join(small_disk, 'data')
    node.write_config()
    node.start().wait_listening()
    one.wait_leader()
    with node.client(30) as client:
        fill(client, 60, 'a', 200000)
        ballast = os.path.join(small_disk, 'ballast')
        with open(ballast, 'wb') as file:
            file.write(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - (6 << 20)))
        answer = client.ask('SNAPSHOT.SAVE')
        assert answer.code == 'ERR' and 'could not be written' in answer.text
        node.process.wait_line(r'checkpoint failed .*No space left on device')
        assert 'checkpoint.tmp' not in os.listdir(node.data)
        assert client('SET', 'after', '1') == 'OK'
        os.unlink(ballast)
        assert client('SNAPSHOT.SAVE') == 'OK'
        before = state(client)
    node.kill9()
    node.start().wait_listening()
    one.wait_leader()
    with node.client(30) as client:
        assert state(client) == before
