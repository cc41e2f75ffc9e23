"""Whatever a client sends, it gets one clear answer, nothing crashes, and other clients notice nothing."""
import os
import random
import socket
import threading

import pytest

from harness import ports, timing
from harness.chat import joined
from harness.process import Process
from harness.resp import Client, ReplyError, encode

pytestmark = pytest.mark.hostile


@pytest.fixture
def bystander(one):
    """A client that works all the time; at the end it must have noticed nothing."""
    stop, faults, done = threading.Event(), [], [0]

    def work():
        with one.nodes[0].client(30) as client:
            while not stop.is_set():
                done[0] += 1
                if client.ask('SET', 'bystander', done[0]) != 'OK' or client.ask('GET', 'bystander') != str(done[0]):
                    faults.append(done[0])
    thread = threading.Thread(target=work)
    thread.start()
    yield one
    stop.set()
    thread.join(30)
    assert not faults and done[0] > 0
    node = one.nodes[0]
    assert node.process.running(), 'lockd died:\n' + node.process.text()[-3000:]
    with node.client() as client:
        assert client('GET', 'bystander') == str(done[0]), 'an acknowledged write is lost'
    assert node.term() == 0


def exchange(address, data, shut=True):
    """Send bytes, say that no more come, and read until the other side closes."""
    with Client(address, 20) as client:
        try:
            client.raw(data)
            if shut:
                client.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            return client.read_to_end()
        except ConnectionResetError:
            return client.buffer


GARBAGE = [
    b'*2147483648\r\n', b'*9223372036854775808\r\n', b'*abc\r\n', b'*1\r\n$9223372036854775807\r\n', b'*1\r\n$-1\r\n',
    b'*1\r\n$abc\r\n', b'*1\r\n:1\r\n', b'*1\r\nPING\r\n', b'*1\r\n*1\r\n$4\r\nPING\r\n', b'*1\r\n$2147483647\r\n',
    b'*1\r\n$536870913\r\n', b'*1\r\n$\r\n', b'*\r\n', b'*1\r\n$-2\r\n', b'* 1\r\n$4\r\nPING\r\n', b'*+1\r\n$4\r\nPING\r\n',
    b'*99999999999999999999999999\r\n', b'*1\r\n$99999999999999999999999999\r\n', b'*1\r\n$04\r\nPING\r\n',
]


@pytest.fixture
def redis(tmp_path):
    port = ports.port()
    server = Process('redis-server', ['redis-server', '--port', port, '--bind', '127.0.0.1', '--save', '', '--dir', str(tmp_path)],
                     tmp_path)
    server.wait_line(r'Ready to accept connections')
    return f'127.0.0.1:{port}'


def test_protocol_garbage_gets_the_answer_of_redis(bystander, redis):
    address = bystander.addresses[0]
    different = []
    for data in GARBAGE:
        ours, theirs = exchange(address, data), exchange(redis, data)
        named_limit = ours.startswith(b'-ERR') and b'max' in ours  # a limit of ours that is lower than theirs
        if ours != theirs and not named_limit:
            different.append(f'{data!r}: redis {theirs!r}, lockd {ours!r}')
    assert not different, '\n'.join(different)


def test_good_commands_before_garbage_are_answered(bystander):
    address = bystander.addresses[0]
    got = exchange(address, encode('SET', 'a', '1') + encode('GET', 'a') + b'*1\r\n$-1\r\n' + encode('GET', 'a'))
    assert got.startswith(b'+OK\r\n$1\r\n1\r\n-ERR Protocol error')
    assert got.count(b'\r\n') == 4, 'nothing after the garbage is run'


def test_empty_requests_are_skipped(bystander, redis):
    for data in (b'*0\r\n', b'*-1\r\n', b'\r\n', b'*0\r\n\r\n*-5\r\n'):
        data += encode('PING')
        assert exchange(bystander.addresses[0], data) == exchange(redis, data), data


def test_half_a_command_and_a_close(bystander):
    address = bystander.addresses[0]
    whole = encode('SET', 'half', 'x' * 50)
    for end in range(1, len(whole)):
        assert exchange(address, whole[:end]) == b''
    with Client(address) as client:
        assert client('GET', 'half') is None


def test_one_byte_at_a_time(bystander):
    with Client(bystander.addresses[0]) as client:
        for byte in encode('SET', 'slow', 'value') + encode('GET', 'slow'):
            client.raw(bytes([byte]))
        assert client.receive() == 'OK' and client.receive() == 'value'


def test_random_bytes(bystander):
    rng = random.Random(4711)
    for _ in range(60):
        data = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 3000)))
        exchange(bystander.addresses[0], rng.choice([b'', b'*', b'*3\r\n$3\r\nSET\r\n']) + data)


def test_mutated_commands(bystander):
    """Valid pipelines with a few bytes changed: never silence for ever, never a crash."""
    rng = random.Random(815)
    seeds = [encode('SET', 'm', 'v', 'PX', '1000'), encode('LOCK.ACQUIRE', 'l', 'LEASE', '1', 'WAIT', '10'),
             encode('EVAL', "return redis.call('GET', KEYS[1])", '1', 'm'), encode('ROUTE.BIND', 'p', 's', 'LEASE', '1', 'x', 'PREFER', 'x'),
             encode('CAS', 'm', '0', 'v'), encode('LEASE.GRANT', '1000', 'NAME', 'n'), encode('COMMAND', 'DOCS', 'get')]
    for _ in range(300):
        data = bytearray(b''.join(rng.choice(seeds) for _ in range(3)))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b'*$\r\n0123456789-+:abcXYZ \xff\x00')
        exchange(bystander.addresses[0], bytes(data))


def test_what_is_too_long_is_refused_by_name(bystander):
    with Client(bystander.addresses[0], 60) as client:
        reply = client.ask('SET', 'k' * 501, 'v')
        assert isinstance(reply, ReplyError) and 'key' in reply.text and '500' in reply.text, reply
        assert client('SET', 'k' * 500, 'v') == 'OK'
        reply = client.ask('LOCK.ACQUIRE', 'k' * 501, 'LEASE', '1')
        assert isinstance(reply, ReplyError) and '500' in reply.text
        assert client('SET', 'big', 'v' * (1 << 20)) == 'OK'
    with Client(bystander.addresses[0], 60) as client:
        reply = client.ask('SET', 'big', 'v' * ((1 << 20) + 1))
        assert isinstance(reply, ReplyError) and ('value' in reply.text or 'bulk' in reply.text), reply
    with Client(bystander.addresses[0], 60) as client:
        reply = client.ask('DEL', *['k'] * 1024)
        assert isinstance(reply, ReplyError) and ('1024' in reply.text or 'argument' in reply.text), reply


def test_a_request_that_announces_gigabytes_takes_no_memory(bystander):
    node = bystander.nodes[0]

    def resident():
        with open(f'/proc/{node.process.pid}/status') as file:
            return next(int(line.split()[1]) for line in file if line.startswith('VmRSS'))
    before = resident()
    clients = [Client(node.address) for _ in range(200)]
    for client in clients:
        client.raw(b'*1000\r\n$1000000\r\nabc')
    for client in clients:
        client.raw(b'def')
    with node.client() as probe:
        assert probe('PING') == 'PONG'
    grown = resident() - before
    for client in clients:
        client.close()
    assert grown < 64 * 1024 * timing.SLOW, f'{grown} KiB for 200 clients that sent 20 bytes each'


def test_unknown_commands_and_options_and_wrong_counts(bystander):
    """Every command of COMMAND with too few, too many and senseless arguments: one error each, and the line goes on."""
    with Client(bystander.addresses[0]) as client:
        for words in (('FROB',), ('frob', 'a', 'b'), ('',), ('SET\r\n', 'a'), ('G' * 10000,), ('\xff\x00', 'x')):
            reply = client.ask(*words)
            assert isinstance(reply, ReplyError) and reply.code == 'ERR', words
        names = [line.split('"')[1] for line in open(os.path.join(os.path.dirname(__file__), '../../lockd/core/commands.def'))
                 if line.startswith('COMMAND(')]
        rng = random.Random(99)
        odd = ['', '0', '-1', '9223372036854775808', '-9223372036854775808', '1e5', 'nan', 'LEASE', 'NX', 'WAIT', '\r\n', 'x' * 300, ' 1']
        for name in names:
            for count in list(range(0, 9)) + [40]:
                if name == 'QUIT' or name == 'FLUSHALL' and count < 2:
                    continue
                words = [name] + [rng.choice(odd) for _ in range(count)]
                reply = client.ask(*words)
                if name.startswith('%'):
                    assert isinstance(reply, ReplyError) and 'unknown command' in reply.text, words
        assert client('PING') == 'PONG'


def test_deep_and_endless_scripts_end(bystander):
    with Client(bystander.addresses[0], 60) as client:
        for script in ('while true do end', 'local t = {} while true do t[#t + 1] = string.rep("x", 100000) end',
                       'local function f() return f() + 1 end return f()', 'return ' + '{' * 300 + '}' * 300,
                       'local t = {} t[1] = t return t', 'error("x")', 'return os.time()', 'return io.open("/etc/passwd")',
                       'return loadstring("return 1")()', 'return require("os")', '\x1bLua', 'redis.call("GET")', 'x = 1',
                       'return redis.call("FLUSHALL")', 'return redis.call("SET", "undeclared", "1")', 'return string.rep("x", 1e9)',
                       'pcall(function() while true do end end) return 1', 'return setmetatable(_G, {})', 'return (',
                       'for i = 1, 1e12 do end'):
            reply = client.ask('EVAL', script, 0)
            assert isinstance(reply, ReplyError) or script.startswith('return {') or 'setmetatable' in script or \
                script == 'local t = {} t[1] = t return t', (script[:60], reply)
        assert client('EVAL', 'return 1', 0) == 1
        assert client.ask('GET', 'undeclared') is None


def test_a_client_that_never_reads_its_replies_is_bounded(bystander):
    node = bystander.nodes[0]
    with node.client() as setter:
        setter('SET', 'big', 'v' * 1000000)
    greedy = Client(node.address, 2)
    greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = encode('GET', 'big') * 100
    try:
        for _ in range(100):
            greedy.raw(request)
    except OSError:
        pass  # it stopped reading from us, or closed: both are right
    with open(f'/proc/{node.process.pid}/status') as file:
        resident = next(int(line.split()[1]) for line in file if line.startswith('VmRSS'))
    with node.client() as probe:
        assert probe('PING') == 'PONG'
    greedy.close()
    assert resident < 512 * 1024 * timing.SLOW, f'{resident} KiB'


def test_a_client_that_leaves_with_a_thousand_commands_in_flight(bystander):
    for _ in range(5):
        client = Client(bystander.addresses[0])
        client.raw(b''.join(encode('INCR', 'flight') for _ in range(1000)))
        client.close()
    with Client(bystander.addresses[0]) as client:
        timing.wait_for('it to settle', lambda: 0 <= int(client('GET', 'flight') or 0) <= 5000)


@pytest.mark.alone
def test_five_thousand_idle_connections(bystander):
    node = bystander.nodes[0]

    def resident():
        with open(f'/proc/{node.process.pid}/status') as file:
            return next(int(line.split()[1]) for line in file if line.startswith('VmRSS'))
    before = resident()
    idle = [Client(node.address, 60) for _ in range(5000)]
    with Client(node.address, 60) as client:
        for number in range(100):
            assert client('SET', 'busy', number) == 'OK'
    assert idle[0]('PING') == 'PONG' and idle[-1]('PING') == 'PONG' and idle[2500]('PING') == 'PONG'
    each = (resident() - before) * 1024 / 5000
    for client in idle:
        client.close()
    print(f'{each:.0f} bytes per idle connection')
    if timing.SLOW == 1 and 'sanitize' not in os.environ.get('HOLDFAST_BUILD', ''):
        assert each < 4096


def test_garbage_on_the_peer_port(cluster):
    """Random bytes, a RESP command and half a frame where only nodes should speak: logged once, closed, no harm."""
    three = cluster(3)
    rng = random.Random(7)
    for node in three.nodes:
        for data in (encode('PING'), b'GET / HTTP/1.0\r\n\r\n', bytes(rng.randrange(256) for _ in range(5000)), b'\0' * 100,
                     b'\xff' * 100, b'\x7f\xff\xff\xff' * 10, b''):
            exchange(node.peer_address, data)
    assert three.call('SET', 'a', '1') == 'OK'
    for node in three.nodes:
        assert node.process.running()
        assert node.client()('GET', 'a') == '1'
    three.stop_all()


def test_garbage_at_the_proxy(cluster, chatd, proxy):
    single = cluster(1)
    server = chatd('a')
    one = proxy('p1', single.addresses, [server], key_timeout_ms=500)
    rng = random.Random(3)
    good, _ = joined(one.address, 'lobby', 'good')
    for data in (b'\n', b'\0' * 5000, b'x' * 100000, b'JOIN \n', b'JOIN', b'JOIN ' + b'k' * 60000 + b' u\n',
                 bytes(rng.randrange(256) for _ in range(20000)), b'JOIN \xff\xfe\x00 u\n', b'\r\n\r\n'):
        exchange(one.address, data)
    idle = [socket.create_connection(('127.0.0.1', int(one.address.rsplit(':', 1)[1]))) for _ in range(300)]
    good.say('still here')
    assert good.hear_until('still here')
    for each in idle:
        each.close()
    assert one.term() == 0
    single.stop_all()
