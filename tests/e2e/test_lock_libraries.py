"""Programs that were written for Redis: python3-redis' Lock, redis-cli and the Node client, unchanged."""
import threading

import os
import pytest
import redis
from redis.exceptions import LockError, LockNotOwnedError

from harness import timing
from harness.process import run


def connect(address):
    host, port = address.rsplit(':', 1)
    return redis.Redis(host=host, port=int(port), socket_timeout=20)


@pytest.fixture
def clients(three):
    return [connect(address) for address in three.addresses]


def test_redis_py_lock_acquire_extend_release(clients):
    a, b = clients[0], clients[1]
    lock = a.lock('job', timeout=5)
    other = b.lock('job', timeout=5)
    assert lock.acquire(blocking=False)
    assert not other.acquire(blocking=False)
    assert lock.owned() and lock.locked() and other.locked() and not other.owned()
    before = a.pttl('job')
    assert lock.extend(10)
    assert a.pttl('job') > before + 5000
    assert lock.extend(7, replace_ttl=True)
    assert 5000 < a.pttl('job') <= 7000
    assert lock.reacquire()
    assert 0 < a.pttl('job') <= 5000
    lock.release()
    assert not lock.locked()
    assert other.acquire(blocking=False)
    with pytest.raises(LockError):
        lock.release()
    other.release()


def test_redis_py_lock_is_not_released_by_who_lost_it(clients):
    a, b = clients[0], clients[2]
    lock = a.lock('job', timeout=0.3)
    assert lock.acquire(blocking=False)
    timing.wait_for('it to run out', lambda: not a.exists('job'), 5)
    other = b.lock('job', timeout=5)
    assert other.acquire(blocking=False)
    with pytest.raises(LockNotOwnedError):
        lock.extend(5)
    with pytest.raises(LockNotOwnedError):
        lock.release()
    assert other.owned()
    other.release()


def test_redis_py_lock_blocks_until_it_is_free(clients):
    a, b = clients[0], clients[1]
    with a.lock('job', timeout=10):
        waiting = threading.Event()
        got = []

        def second():
            lock = b.lock('job', timeout=10, sleep=0.01)
            waiting.set()
            got.append(lock.acquire(blocking=True, blocking_timeout=10))
            lock.release()
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        assert not b.lock('job', timeout=10).acquire(blocking=True, blocking_timeout=0.1)
        assert not got
    thread.join(15)
    assert got == [True]


def test_only_one_of_many_redis_py_clients_holds_the_lock(three):
    """Eight threads on three nodes count in a plain variable under the lock: a lost update is two holders."""
    total, rounds = [0], 15

    def worker(number):
        client = connect(three.addresses[number % 3])
        for _ in range(rounds):
            with client.lock('counter', timeout=20, sleep=0.002):
                seen = total[0]
                client.ping()
                total[0] = seen + 1
    threads = [threading.Thread(target=worker, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert total[0] == 8 * rounds


def test_redis_py_lock_survives_the_death_of_the_leader(three, clients):
    leader = three.wait_leader()
    others = [connect(n.address) for n in three.nodes if n is not leader]
    lock = others[0].lock('job', timeout=30)
    assert lock.acquire(blocking=False)
    leader.kill9()
    three.wait_leader(but=leader)
    assert lock.owned()
    assert not others[1].lock('job', timeout=5).acquire(blocking=False)
    assert lock.extend(10)
    lock.release()
    assert others[1].lock('job', timeout=5).acquire(blocking=False)


def test_redis_py_pipeline_and_decoding(clients):
    pipe = clients[1].pipeline(transaction=False)
    for number in range(100):
        pipe.set(f'p{number}', number)
    assert pipe.execute() == [True] * 100
    assert clients[2].get('p99') == b'99'
    assert clients[0].set('p99', 'x', nx=True) is None
    assert clients[0].set('p99', 'x', xx=True, get=True) == b'99'


def test_redis_cli_takes_and_gives_back_a_lock(three):
    def cli(*words):
        host, port = three.addresses[1].rsplit(':', 1)
        status, out, err = run(['redis-cli', '-h', host, '-p', port, *words])
        assert status == 0, err
        return out.strip()
    assert cli('SET', 'job', 'me', 'NX', 'PX', '30000') == 'OK'
    assert cli('SET', 'job', 'you', 'NX', 'PX', '30000') == ''
    free = "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end"
    assert cli('EVAL', free, '1', 'job', 'you') == '0'
    assert cli('EVAL', free, '1', 'job', 'me') == '1'
    lease = cli('LEASE.GRANT', '30000')
    token = cli('LOCK.ACQUIRE', 'job', 'LEASE', lease)
    assert int(token) > 0 and cli('LOCK.CHECK', 'job', token) == '1'
    assert cli('LOCK.RELEASE', 'job', 'LEASE', lease, 'TOKEN', token) == '1'


NODE_SCRIPT = '''
const { createClient } = require('redis');
(async () => {
    const client = createClient({ url: 'redis://' + process.argv[2] });
    client.on('error', (error) => { console.error(error); process.exit(1); });
    await client.connect();
    console.log(await client.set('job', 'mine', { NX: true, PX: 30000 }));
    console.log(await client.set('job', 'other', { NX: true, PX: 30000 }));
    const release = "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";
    console.log(await client.eval(release, { keys: ['job'], arguments: ['other'] }));
    console.log(await client.eval(release, { keys: ['job'], arguments: ['mine'] }));
    const lease = await client.sendCommand(['LEASE.GRANT', '30000']);
    const token = await client.sendCommand(['LOCK.ACQUIRE', 'job', 'LEASE', String(lease)]);
    console.log(await client.sendCommand(['LOCK.CHECK', 'job', String(token)]));
    await client.quit();
})();
'''


def test_the_node_client_takes_a_lock(three, tmp_path):
    script = tmp_path / 'lock.js'
    script.write_text(NODE_SCRIPT)
    env = {'NODE_PATH': '/usr/share/nodejs' + os.pathsep + os.environ.get('NODE_PATH', '')}
    status, out, err = run(['node', script, three.addresses[2]], env=env, timeout=60)
    assert status == 0, err
    assert out.split() == ['OK', 'null', '0', '1', '1']
