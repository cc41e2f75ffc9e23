"""Every command as a client sees it; those that Redis has are compared with redis-server itself, reply by reply."""
import os
import re
import time

import pytest

from harness import ports, timing
from harness.process import Process
from harness.resp import Client, ReplyError, pairs


@pytest.fixture
def redis(tmp_path):
    port = ports.port()
    server = Process('redis-server', ['redis-server', '--port', port, '--bind', '127.0.0.1', '--save', '', '--appendonly',
                                      'no', '--dir', str(tmp_path), '--enable-debug-command', 'no'], tmp_path)
    server.wait_line(r'Ready to accept connections')
    with Client(f'127.0.0.1:{port}') as client:
        yield client


# Sent to both in this order; {key} with a deadline keep theirs long enough that a whole second cannot pass between.
SAME = '''
PING | PING hello | ECHO hello | SELECT 0 | SELECT x | ping | eCHO Hi
SET a 1 | GET a | SET a 2 NX | SET a 2 XX | GET a | SET b 1 XX | GET b | SET a 3 GET | SET new 1 GET | SET new 2 NX GET
set A 1 nx | SET a 1 PX 100000 | TTL a | SET a 2 KEEPTTL | TTL a | SET a 3 | TTL a | PTTL a | SET a 1 EX 100 | TTL a
SET a 1 px 0 | SET a 1 EX -1 | SET a 1 EX abc | SET a 1 PX | SET a 1 NX XX | SET a 1 EX 10 PX 10 | SET a 1 KEEPTTL EX 1
SET a 1 EX 9223372036854775807 | SET a 1 PX 9223372036854775807 | SET a 1 FROB | SET a | GET | GET a b | SET a 1 EX 10 KEEPTTL
DEL a b new | DEL a | EXISTS a | SET a 1 | EXISTS a a b | TYPE a | TYPE none | TTL none | PTTL none | TTL a
EXPIRE a 100 | TTL a | PERSIST a | PERSIST a | TTL a | PEXPIRE a 100000 | TTL a | EXPIRE none 1 | PERSIST none
EXPIRE a abc | EXPIRE a | PEXPIRE a 9223372036854775807 | EXPIRE a 9223372036854775807 | EXPIRE a 10 FROB
EXPIRE a 100 NX | EXPIRE a 200 XX | TTL a | EXPIRE a 100 GT | TTL a | EXPIRE a 100 LT | TTL a | EXPIRE a 10 NX XX | EXPIRE a 10 GT LT
EXPIRE a -1 | EXISTS a | SET a 1 | PEXPIRE a 0 | EXISTS a
INCR n | INCR n | GET n | SET n abc | INCR n | SET n 9223372036854775807 | INCR n | SET n -5 | INCR n | SET n 1.5 | INCR n | SET n " 1" | INCR n | INCR
DEL n a A | DBSIZE | SET x 1 | SET y 2 | DBSIZE | FLUSHALL | DBSIZE | FLUSHALL ASYNC | FLUSHALL SYNC | FLUSHALL FROB
NOSUCH | NOSUCH a b | NOSUCH "a b" c | GETX a | ""
CLIENT SETNAME worker | CLIENT GETNAME | CLIENT SETNAME "a b" | CLIENT
EVAL "return 1" 0 | EVAL "return 'a'" 0 | EVAL "return {1,2,'x'}" 0 | EVAL "return nil" 0 | EVAL "return false" 0 | EVAL "return true" 0 | EVAL "return 3.7" 0
EVAL "return {1,2,nil,4}" 0 | EVAL "return {ok='fine'}" 0 | EVAL "return {err='ERR mine'}" 0 | EVAL "return redis.status_reply('s')" 0 | EVAL "return redis.error_reply('ERR e')" 0
EVAL "return KEYS[1]..ARGV[1]" 1 k v | EVAL "return #KEYS + #ARGV" 2 a b c | EVAL "return 1" | EVAL "return 1" 1 | EVAL "return 1" -1 | EVAL "return 1" x
EVAL "return redis.call('SET', KEYS[1], ARGV[1])" 1 k v | GET k | EVAL "return redis.call('GET', KEYS[1])" 1 k | EVAL "return redis.call('PTTL', KEYS[1])" 1 k
EVAL "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end" 1 k nope | EVAL "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end" 1 k v | EXISTS k
EVAL "return redis.pcall('INCR', KEYS[1])['err'] ~= nil" 1 k | EVAL "return redis.sha1hex('')" 0 | EVAL "return tostring(KEYS[1])" 0 | EVAL "return string.rep('ab', 3)" 0
EVALSHA ffffffffffffffffffffffffffffffffffffffff 0 | EVALSHA x 0 | SCRIPT EXISTS ffffffffffffffffffffffffffffffffffffffff
SCRIPT LOAD "return 7" | EVALSHA 5ca75af3c2a2f1e25d5e1dbc1d1b0bbe5a1cd7a0 0 | SCRIPT EXISTS ffffffffffffffffffffffffffffffffffffffff | SCRIPT FLUSH | SCRIPT FROB
'''


def words_of(line):
    """Split like a shell: double quotes keep blanks."""
    return [quoted if whole.startswith('"') else whole for whole, quoted in re.findall(r'("([^"]*)"|[^\s"]+)', line)]


def test_what_redis_has_is_answered_as_redis_answers_it(one, redis):
    client = one.client()
    different = []
    for line in SAME.strip().splitlines():
        for call in line.split(' | '):
            words = words_of(call)
            ours, theirs = client.ask(*words), redis.ask(*words)
            if ours != theirs and not (isinstance(ours, int) and isinstance(theirs, int) and words[0] in ('TTL', 'PTTL')
                                       and abs(ours - theirs) <= 1):
                different.append(f'{call!r}: redis {theirs!r}, lockd {ours!r}')
    assert not different, '\n'.join(different)


def test_values_are_bytes_of_any_kind_and_length(one, redis):
    for value in (b'', b'\0', b'\r\n', b'\xff\xfe', os.urandom(1000), os.urandom(70000), os.urandom(1 << 20)):
        for client in (one.client(), redis):
            assert client('SET', 'bytes', value) == 'OK'
            got = client('GET', 'bytes')
            assert (got if isinstance(got, bytes) else got.encode()) == value


def test_a_thousand_commands_in_one_write_are_answered_in_order(one):
    client = one.client()
    replies = client.pipeline([('ECHO', n) if n % 3 else ('INCR', 'n') for n in range(1000)])
    want = [str(n) if n % 3 else n // 3 + 1 for n in range(1000)]
    assert replies == want


def test_hello_quit_client_command_info_time(one):
    client = one.client()
    hello = pairs(client('HELLO'))
    assert hello['proto'] == 2 and hello['server']
    assert pairs(client('HELLO', '2', 'SETNAME', 'me'))['proto'] == 2
    assert client('CLIENT', 'GETNAME') == 'me'
    assert client.ask('HELLO', '3').code == 'NOPROTO'
    assert client('CLIENT', 'SETINFO', 'lib-name', 'x') == 'OK', 'Redis 7.2 has it, and its clients send it'
    assert client.ask('SELECT', '1').code == 'ERR', 'there is one database'
    assert client('CLIENT', 'ID') != one.client()('CLIENT', 'ID')
    assert isinstance(client('COMMAND'), list)
    assert client('COMMAND', 'COUNT') >= 0
    info = client('INFO')
    assert 'redis_version' in info and 'role' in info
    seconds, micros = map(int, client('TIME'))
    assert abs(seconds - time.time()) < 5 and 0 <= micros < 1000000
    assert client('QUIT') == 'OK'
    assert client.read_to_end() == b''


def test_keys_expire_by_themselves(one):
    client = one.client()
    begin = timing.boot_ms()
    client('SET', 'short', '1', 'PX', '300')
    left = client('PTTL', 'short')
    assert 0 < left <= 300
    timing.wait_for('the key to expire', lambda: client('EXISTS', 'short') == 0, 5)
    took = timing.boot_ms() - begin
    assert took >= 300, f'it was gone after {took:.0f} ms'
    assert took < 300 + 1000 * timing.SLOW
    assert client('GET', 'short') is None and client('PTTL', 'short') == -2
    client('SET', 'long', '1')
    client('PEXPIRE', 'long', '200')
    timing.wait_for('the key to expire', lambda: client('GET', 'long') is None, 5)
    assert client('SET', 'long', '2', 'NX') == 'OK'


def test_cas_and_versions(one):
    client = one.client()
    assert client('GETV', 'c') is None
    wrote, first = client('CAS', 'c', 0, 'one')
    assert wrote == 1 and first > 0
    assert client('GETV', 'c') == [first, 'one']
    assert client('CAS', 'c', 0, 'two') == [0, first, 'one']
    assert client('CAS', 'c', first + 1000, 'two') == [0, first, 'one']
    wrote, second = client('CAS', 'c', first, 'two')
    assert wrote == 1 and second > first
    client('PEXPIRE', 'c', 100000)
    assert client('GETV', 'c') == [second, 'two'], 'a deadline does not change the version'
    client('SET', 'c', 'three')
    version, value = client('GETV', 'c')
    assert version > second and value == 'three'
    client('DEL', 'c')
    assert client('CAS', 'c', version, 'x') == [0, 0, None]
    for bad in (('CAS', 'c', 'x', 'v'), ('CAS', 'c', '-1', 'v'), ('CAS', 'c', '1', 'v', 'FROB'), ('CAS', 'c', '0', 'v', 'LEASE', '77')):
        assert client.ask(*bad).code in ('ERR', 'NOLEASE'), bad


def test_write_once_registers(one):
    client = one.client()
    assert client('WOR.GET', 'w') is None
    wrote, version, value = client('WOR.SET', 'w', 'first')
    assert (wrote, value) == (1, 'first')
    assert client('WOR.SET', 'w', 'second') == [0, version, 'first']
    assert client('WOR.GET', 'w') == [version, 'first']
    for words in (('SET', 'w', 'x'), ('DEL', 'w'), ('EXPIRE', 'w', '1'), ('INCR', 'w'), ('CAS', 'w', version, 'x'), ('PERSIST', 'w')):
        reply = client.ask(*words)
        assert isinstance(reply, ReplyError) and reply.code == 'WRITEONCE', (words, reply)
        assert 'w' in reply.text
    assert client.ask('FLUSHALL').code in ('WRITEONCE', 'ERR')
    assert client('TYPE', 'w') == 'register' and client('EXISTS', 'w') == 1
    assert client('WOR.GET', 'w') == [version, 'first']
    one.nodes[0].kill9()
    one.nodes[0].start().wait_listening()
    one.wait_leader()
    assert one.call('WOR.SET', 'w', 'third') == [0, version, 'first']


def test_leases(one):
    client = one.client()
    lease = client('LEASE.GRANT', 1000, 'NAME', 'worker 7')
    assert lease > 0
    info = pairs(client('LEASE.INFO', lease))
    assert info['ttl'] == 1000 and info['name'] == 'worker 7' and 0 < info['remaining'] <= 1000
    assert client('SET', 'mine', 'v', 'LEASE', lease) == 'OK'
    assert client('CAS', 'mine too', 0, 'v', 'LEASE', lease)[0] == 1
    assert pairs(client('LEASE.INFO', lease))['keys'] == 2
    assert client('LEASE.KEEPALIVE', lease, lease + 1000000) == [1000, -1]
    cursor, ids = client('LEASE.LIST')
    assert lease in ids and str(cursor) == '0'
    assert client('TTL', 'mine') == -1
    assert client('LEASE.REVOKE', lease) == 1
    assert client('LEASE.REVOKE', lease) == 0
    assert client('LEASE.INFO', lease) is None
    assert client('EXISTS', 'mine', 'mine too') == 0
    for bad in (('LEASE.GRANT', 999), ('LEASE.GRANT', 86400001), ('LEASE.GRANT', 'x'), ('LEASE.GRANT', '-1'),
                ('LEASE.GRANT', 1000, 'FROB', 'x'), ('LEASE.KEEPALIVE', 'x'), ('LEASE.REVOKE', 'x'), ('LEASE.INFO', '')):
        assert client.ask(*bad).code == 'ERR', bad
    assert 'ttl-ms' in client.ask('LEASE.GRANT', 999).text
    assert client.ask('SET', 'a', 'b', 'LEASE', lease).code == 'NOLEASE'
    assert client.ask('SET', 'a', 'b', 'LEASE', lease, 'EX', '5').code == 'ERR'


def test_a_lease_that_is_not_renewed_ends_and_takes_its_keys_along(one):
    client = one.client()
    before = timing.boot_ms()
    lease = client('LEASE.GRANT', 1000)
    client('SET', 'k', 'v', 'LEASE', lease)
    timing.wait_for('the lease to end', lambda: client('GET', 'k') is None, 5)
    took = timing.boot_ms() - before
    assert took >= 1000, f'the lease of 1000 ms ended after {took:.0f} ms'
    assert took <= 1100 + 500 * timing.SLOW
    assert client('LEASE.KEEPALIVE', lease) == [-1]


def test_locks(one):
    client = one.client()
    a, b = client('LEASE.GRANT', 10000), client('LEASE.GRANT', 10000)
    assert client('LOCK.INFO', 'l') is None
    token = client('LOCK.ACQUIRE', 'l', 'LEASE', a, 'VALUE', 'me')
    assert client('LOCK.ACQUIRE', 'l', 'LEASE', a) == token, 'the holder gets its own token again'
    assert client('LOCK.ACQUIRE', 'l', 'LEASE', b) is None
    assert client('LOCK.ACQUIRE', 'l', 'LEASE', b, 'WAIT', 0) is None
    info = pairs(client('LOCK.INFO', 'l'))
    assert (info['lease'], info['token'], info['value'], info['waiters']) == (a, token, 'me', 0)
    assert client('LOCK.CHECK', 'l', token) == 1
    assert client.ask('LOCK.CHECK', 'l', token + 1).code == 'FENCED'
    assert client.ask('LOCK.CHECK', 'other', token).code == 'FENCED'
    assert client('TYPE', 'l') == 'lock'
    assert client('SET', 'l', 'x', 'NX') is None, 'SET NX on a held lock is as on any key that exists'
    for words in (('SET', 'l', 'x'), ('GET', 'l'), ('DEL', 'l'), ('INCR', 'l'), ('CAS', 'l', '0', 'x')):
        assert client.ask(*words).code == 'WRONGTYPE', words
    assert client.ask('FLUSHALL').code == 'ERR'
    assert client('LOCK.RELEASE', 'l', 'LEASE', b) == 0
    assert client('LOCK.RELEASE', 'l', 'LEASE', a, 'TOKEN', token + 1) == 0
    assert client('LOCK.RELEASE', 'l', 'LEASE', a, 'TOKEN', token) == 1
    assert client('LOCK.RELEASE', 'l', 'LEASE', a, 'TOKEN', token) == 0
    second = client('LOCK.ACQUIRE', 'l', 'LEASE', b)
    assert second > token
    assert client.ask('LOCK.CHECK', 'l', token).code == 'FENCED'
    assert client.ask('LOCK.ACQUIRE', 'l', 'LEASE', b + 1000000).code == 'NOLEASE'
    for bad in (('LOCK.ACQUIRE', 'l', 'LEASE', 'x'), ('LOCK.ACQUIRE', 'l', 'FROB', b), ('LOCK.ACQUIRE', 'l', 'LEASE', b, 'WAIT', 'x'),
                ('LOCK.ACQUIRE', 'l', 'LEASE', b, 'WAIT', '-1'), ('LOCK.ACQUIRE', 'l', 'LEASE', b, 'WAIT'), ('LOCK.CHECK', 'l', 'x'),
                ('LOCK.RELEASE', 'l', 'LEASE', b, 'TOKEN', 'x'), ('LOCK.ACQUIRE', 'l')):
        assert client.ask(*bad).code == 'ERR', bad


def test_once(three):
    a, b = (node.client() for node in three.nodes[:2])
    lease, other = a('LEASE.GRANT', 10000), a('LEASE.GRANT', 10000)
    assert a('ONCE', lease, 1, 'INCR', 'n') == 1
    assert b('ONCE', lease, 1, 'INCR', 'n') == 1, 'a repeat on another node'
    assert b('ONCE', lease, 2, 'INCR', 'n') == 2
    script = "return redis.call('incr', KEYS[1])"
    assert a('ONCE', lease, 3, 'EVAL', script, 1, 'n') == 3
    assert b('ONCE', lease, 3, 'EVAL', script, 1, 'n') == 3
    assert a('GET', 'n') == '3'
    token = a('LOCK.ACQUIRE', 'l', 'LEASE', other)
    b.send('ONCE', lease, 4, 'LOCK.ACQUIRE', 'l', 'LEASE', lease, 'WAIT', 10000)
    timing.wait_for('it to wait', lambda: pairs(a('LOCK.INFO', 'l'))['waiters'] == 1)
    b.close()
    leader = three.leader()
    leader.kill9()
    three.wait_leader(but=leader)
    alive = [node for node in three.nodes if node is not leader]
    assert alive[0].client()('LOCK.RELEASE', 'l', 'LEASE', other, 'TOKEN', token) in (0, 1)
    again = alive[1].client()
    second = again('ONCE', lease, 4, 'LOCK.ACQUIRE', 'l', 'LEASE', lease, 'WAIT', 10000)
    assert second > token
    assert again('ONCE', lease, 4, 'LOCK.ACQUIRE', 'l', 'LEASE', lease, 'WAIT', 10000) == second
    assert again('ONCE', lease, 1, 'INCR', 'n') == 1 and again('GET', 'n') == '3', 'after a failover'
    for bad, code in ((('ONCE', lease, 3, 'INCR', 'n'), 'ERR'), (('ONCE', lease + 100000, 1, 'INCR', 'n'), 'NOLEASE'),
                      (('ONCE', lease, 5, 'GET', 'n'), 'ERR'), (('ONCE', lease, 5, 'INCR'), 'ERR'), (('ONCE', lease, 5), 'ERR'),
                      (('ONCE', lease, 5, 'NOSUCH', 'n'), 'ERR'), (('ONCE', lease, 'x', 'INCR', 'n'), 'ERR'),
                      (('ONCE', lease, 5, 'ONCE', lease, 6, 'INCR', 'n'), 'ERR')):
        assert again.ask(*bad).code == code, bad
    assert again('COMMAND', 'GETKEYS', 'ONCE', 1, 1, 'DEL', 'x', 'y') == ['x', 'y']


def test_elections(one):
    client = one.client()
    a, b = client('LEASE.GRANT', 10000), client('LEASE.GRANT', 10000)
    assert client('ELECT.LEADER', 'e') is None
    token = client('ELECT.CAMPAIGN', 'e', 'LEASE', a, 'VALUE', 'host a')
    assert client('ELECT.LEADER', 'e') == ['host a', token, a]
    assert client('ELECT.CAMPAIGN', 'e', 'LEASE', b, 'VALUE', 'host b') is None
    waiting = one.client()
    waiting.send('ELECT.CAMPAIGN', 'e', 'LEASE', b, 'VALUE', 'host b', 'WAIT', 10000)
    timing.wait_for('b to wait', lambda: pairs(client('LOCK.INFO', 'e'))['waiters'] == 1)
    assert client('ELECT.RESIGN', 'e', 'LEASE', a) == 1
    second = waiting.receive()
    assert second > token
    assert client('ELECT.LEADER', 'e') == ['host b', second, b]
    assert client('ELECT.RESIGN', 'e', 'LEASE', a) == 0
    assert client('LEASE.REVOKE', b) == 1
    assert client('ELECT.LEADER', 'e') is None


def test_what_members_may_not_become(one):
    client = one.client()
    store = str(one.nodes[0].status()['store-id'])
    other = 'f' * 16
    for bad, text in ((('NODE.ADD', 1, '127.0.0.1:7', other), 'member already'), (('NODE.ADD', 2, '127.0.0.1:7', store), 'node 1 already'),
                      (('NODE.ADD', 0, '127.0.0.1:7', other), 'number'), (('NODE.ADD', 10, '127.0.0.1:7', other), 'number'),
                      (('NODE.ADD', 2, '127.0.0.1', other), 'HOST:PORT'), (('NODE.ADD', 2, '127.0.0.1:7', 'f'), 'store id'),
                      (('NODE.REMOVE', 1), 'last that votes'), (('NODE.REMOVE', 2), 'no member'), (('NODE.REMOVE', 'x'), 'number')):
        reply = client.ask(*bad)
        assert isinstance(reply, ReplyError) and reply.code == 'ERR' and text in reply.text, (bad, reply)
    assert client('COMMAND', 'GETKEYS', 'GET', 'a') == ['a']


def test_node_status(three):
    for node in three.nodes:
        timing.wait_for('it to know the leader', lambda: node.status()['role'] in ('leader', 'follower'))
        status = node.status()
        assert str(status['node']) == str(node.number)
        assert str(status['formed']) == '1'
    assert len({str(n.status()['store-id']) for n in three.nodes}) == 3
    assert len({str(n.status()['cluster-id']) for n in three.nodes}) == 1
    assert [n.status()['role'] for n in three.nodes].count('leader') == 1
