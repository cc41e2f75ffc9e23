"""Two proxies before demo chat servers: every session on one backend, whatever dies or is cut off."""
import asyncio
import re
import socket
import socketserver
import ssl
import threading

import pytest

from harness import ports, timing
from harness.chat import AsyncUser, User, joined, many

FREE_LOAD = 100000  # load-bound-percent so high that placement is by hash alone


async def place(address, rooms, at_once=100):
    """{room: backend} of one user in each room, who leaves as soon as it was welcomed."""
    async def visit(room):
        user = AsyncUser(address, room, f'u-{room}')
        backend = await user.connect_and_join()
        assert backend, f'{room} was refused'
        user.close()
        return backend
    return dict(zip(rooms, await many([visit(room) for room in rooms], at_once)))


def test_a_session_sticks_to_its_backend_through_both_proxies(three, chatd, proxy):
    servers = [chatd(name) for name in 'abc']
    one, two = (proxy(name, three.addresses, servers) for name in ('p1', 'p2'))
    alice, first = joined(one.address, 'lobby', 'alice')
    bob, second = joined(two.address, 'lobby', 'bob')
    assert first == second
    bob.say('hello')
    assert alice.hear_until('bob: hello')
    alice.say('hello yourself')
    assert bob.hear_until('alice: hello yourself')
    again, third = joined(two.address, 'lobby', 'alice2')
    assert third == first
    line = one.process.wait_line(r'session bound .*session=lobby .*backend=(\S+)')
    assert line.group(1).strip('"') == first
    for proxy_ in (one, two):
        assert proxy_.term() == 0
    assert one.process.matches(r'session end reason=shutdown')


def test_a_users_own_address_can_be_the_key(three, chatd, proxy):
    servers = [chatd(name) for name in 'abcde']
    one, two = (proxy(name, three.addresses, servers, keys=('source-ip',)) for name in ('p1', 'p2'))
    assert len({joined(p.address, f'room{n}', 'u')[1] for n in range(5) for p in (one, two)}) == 1


def test_the_first_rule_that_matches_wins(three, chatd, proxy):
    """Rooms are spread; who says no room in time, or in too many bytes, falls back to the address."""
    servers = [chatd(name) for name in 'abcde']
    one = proxy('p1', three.addresses, servers, keys=('line ^JOIN (room[^ ]*)', 'source-ip'), key_timeout_ms=500)
    assert len({joined(one.address, f'room{n}', 'u')[1] for n in range(30)}) > 1
    other = {joined(one.address, f'elsewhere{n}', 'u')[1] for n in range(5)}
    assert len(other) == 1


class Recorder(socketserver.ThreadingTCPServer):
    """A backend that says its name to whatever it hears, and remembers that."""
    allow_reuse_address = daemon_threads = True

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            heard = self.request.recv(65536)
            if heard:
                self.server.heard.append(heard)
                self.request.sendall(f'{self.server.name}\n'.encode())

    def __init__(self, name):
        super().__init__(('127.0.0.1', 0), self.Handler)
        self.name, self.heard, self.address = name, [], f'127.0.0.1:{self.server_address[1]}'
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def recorders():
    made = [Recorder(name) for name in 'abcde']
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def served_by(address, head):
    """Who answers a client that begins like this; it comes in three packets."""
    host, port = address.split(':')
    with socket.create_connection((host, int(port)), timing.DEFAULT_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in (head[:3], head[3:30], head[30:]):
            client.sendall(part)
        return client.makefile('r').readline().strip()


def client_hello(name):
    """The first bytes of OpenSSL."""
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def mqtt_connect(name):
    rest = b'\0\4MQTT\4\2\0\x3c' + len(name).to_bytes(2, 'big') + name.encode()
    return bytes([0x10, len(rest)]) + rest


BEGINNINGS = {
    'http-cookie sid': lambda name: f'GET / HTTP/1.1\r\nHost: x\r\nCookie: a=b; sid={name}\r\n\r\n'.encode(),
    'http-header X-User': lambda name: f'GET / HTTP/1.1\r\nHost: x\r\nx-user: {name}\r\n\r\n'.encode(),
    'http-query room': lambda name: f'GET /chat?v=1&room={name} HTTP/1.1\r\nHost: x\r\n\r\n'.encode(),
    'http-path ^/rooms/([^/]+)': lambda name: f'GET /rooms/{name}/ws HTTP/1.1\r\nHost: x\r\n\r\n'.encode(),
    'sni': client_hello,
    'mqtt-client-id': mqtt_connect,
    'bytes 2 16': lambda name: b'\1\2' + name.encode() + b'\0' * 40,
}


def test_one_port_knows_sessions_of_many_protocols(three, recorders, proxy):
    """Each through both proxies: one backend a session, all of them used, and the bytes arrive as they were sent."""
    views = [(r.name, r.address) for r in recorders]
    keys = tuple(BEGINNINGS)
    one, two = (proxy(name, three.addresses, views, keys=keys, load_bound_percent=FREE_LOAD) for name in ('p1', 'p2'))
    for kind, begin in BEGINNINGS.items():
        places = {}
        for number in range(12):
            name = f'session{number:02}.{kind.split()[0]}'[:16].ljust(16, 'x')
            head = begin(name)
            places[name] = served_by(one.address, head)
            # another address, other fields: only the key counts
            assert served_by(two.address, head) == places[name] != '', (kind, name)
            assert sum(r.heard.count(head) for r in recorders) == 2, (kind, name)
        assert len(set(places.values())) > 1, kind
        assert one.process.matches(rf'session bound .*session={name}')


@pytest.mark.alone
def test_a_thousand_keys_through_two_proxies_that_disagree_about_health_split_nowhere(cluster, chatd, proxy):
    """Parallel first requests for the same key on both proxies; p2 believes that three of ten backends are down."""
    servers = [chatd(f'b{n}') for n in range(10)]
    dead = ports.address()
    rooms = [f'room{n}' for n in range(1000)]
    views = ([(s.name, s.address) for s in servers],
             [(s.name, s.address, {'probe': dead}) if n < 3 else (s.name, s.address) for n, s in enumerate(servers)])
    alone = []
    for number, view in enumerate(views):  # what each would choose if it had nobody to agree with
        single = cluster(1)
        lonely = proxy(f'lonely{number}', single.addresses, view, load_bound_percent=FREE_LOAD, subset=4)
        if number == 1:
            for name in ('b0', 'b1', 'b2'):
                lonely.process.wait_line(rf'backend down .*backend={name}\b')
        alone.append(asyncio.run(place(lonely.address, rooms)))
        lonely.term()
        single.stop_all()
    split = [room for room in rooms if alone[0][room] != alone[1][room]]
    assert len(split) >= 200, f'the views would split only {len(split)} keys: this test would show nothing'

    three = cluster(3)
    one, two = (proxy(f'p{n + 1}', three.addresses, view, load_bound_percent=FREE_LOAD, subset=4)
                for n, view in enumerate(views))  # four of ten: not all of a shard are down
    for name in ('b0', 'b1', 'b2'):
        two.process.wait_line(rf'backend down .*backend={name}\b')

    async def both():
        pairs = [(AsyncUser(one.address, room, 'left'), AsyncUser(two.address, room, 'right')) for room in rooms]
        return await many([asyncio.wait_for(asyncio.gather(left.connect_and_join(), right.connect_and_join()),
                                            60 * timing.SLOW) for left, right in pairs], 100)
    results = dict(zip(rooms, asyncio.run(both())))
    unserved = [room for room, names in results.items() if '' in names]
    assert not unserved, f'{len(unserved)} keys were refused, as {unserved[:3]}'
    wrong = {room: names for room, names in results.items() if names[0] != names[1]}
    assert not wrong, f'{len(wrong)} keys are split, as {list(wrong.items())[:3]}; hashing alone: {len(split)}'


@pytest.mark.alone
def test_a_tenth_backend_takes_a_tenth_of_new_keys_and_no_bound_session(cluster, chatd, proxy):
    servers = [chatd(f'b{n}') for n in range(10)]
    rooms = [f'room{n}' for n in range(10000)]
    placed = []
    for count in (9, 10):  # 10,000 keys on a fresh store each
        single = cluster(1)
        only = proxy(f'with{count}', single.addresses, servers[:count], load_bound_percent=FREE_LOAD)
        placed.append(asyncio.run(place(only.address, rooms)))
        only.term()
        single.stop_all()
    moved = [room for room in rooms if placed[0][room] != placed[1][room]]
    assert {placed[1][room] for room in moved} == {'b9'}, 'all that changed went to the new one'
    assert 0.08 * len(rooms) <= len(moved) <= 0.12 * len(rooms), len(moved)

    three = cluster(3)
    one = proxy('p1', three.addresses, servers[:9], load_bound_percent=FREE_LOAD)
    before = asyncio.run(place(one.address, rooms[:1000]))
    assert one.term() == 0
    two = proxy('p2', three.addresses, servers[:10], load_bound_percent=FREE_LOAD)  # the other, freshly started
    after = asyncio.run(place(two.address, rooms[:1000]))
    stray = [room for room in rooms[:1000] if before[room] != after[room]]
    assert not stray, f'{len(stray)} bound sessions moved, as {stray[:3]}'
    assert len([room for room in rooms[:1000] if placed[1][room] == 'b9']) > 50, 'some would have gone to the tenth'


async def stay_served(proxies, room, number, gone, moves):
    """One live session: on loss it comes back at once, through the other proxy each time."""
    turn = number
    lost_at = None
    while True:
        user = AsyncUser(proxies[turn % 2], room, f'u{number}')
        turn += 1
        try:
            backend = await user.connect_and_join()
        except (ConnectionError, OSError):
            backend = ''
        if backend:
            moves.setdefault(room, []).append((backend, 0 if lost_at is None else timing.boot_ms() - lost_at))
            gone['up'](room)
            await user.closed()
            lost_at = timing.boot_ms()
        user.close()


@pytest.mark.alone
def test_five_hundred_live_sessions_of_a_killed_backend_move_once_within_a_second(three, chatd, proxy):
    servers = [chatd(name) for name in ('a', 'b', 'c')]
    one, two = (proxy(name, three.addresses, servers, subset=3, load_bound_percent=FREE_LOAD) for name in ('p1', 'p2'))
    rooms = [f'room{n}' for n in range(1500)]
    moves = {}

    async def story():
        first, everyone, rejoined = set(), asyncio.Event(), asyncio.Event()
        victims = []

        def up(room):
            first.add(room)
            if len(first) == len(rooms):
                everyone.set()
            if victims and all(len(moves[v]) >= 2 for v in victims):
                rejoined.set()
        tasks = [asyncio.ensure_future(stay_served((one.address, two.address), room, n, {'up': up}, moves))
                 for n, room in enumerate(rooms)]
        await asyncio.wait_for(everyone.wait(), 60 * timing.SLOW)
        by_backend = {s.name: [room for room in rooms if moves[room][0][0] == s.name] for s in servers}
        victim = max(servers, key=lambda s: len(by_backend[s.name]))
        victims.extend(by_backend[victim.name][:])
        assert len(victims) >= 500, {name: len(found) for name, found in by_backend.items()}
        victim.process.signal(9)
        await asyncio.wait_for(rejoined.wait(), 30 * timing.SLOW)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return victim, victims
    victim, victims = asyncio.run(story())
    victim.process.wait()
    late = sorted(moves[room][1][1] for room in victims)
    print(f'{len(victims)} sessions moved: median {late[len(late) // 2]:.0f} ms, last {late[-1]:.0f} ms after the loss')
    for room in rooms:
        if room in set(victims):
            assert len(moves[room]) == 2 and moves[room][1][0] != victim.name, (room, moves[room])
        else:
            assert len(moves[room]) == 1, f'{room} on another backend was touched: {moves[room]}'
    assert late[-1] <= 1000, f'{sum(ms > 1000 for ms in late)} sessions came back later than 1 s, the last after {late[-1]:.0f} ms'
    for address in (one.address, two.address):  # both proxies agree where they are now
        now = asyncio.run(place(address, victims))
        wrong = [room for room in victims if now[room] != moves[room][1][0]]
        assert not wrong, (wrong[0], now[wrong[0]], moves[wrong[0]])
    epochs = {}
    for each in (one, two):
        for match in each.process.matches(r'session moved .*session=(\S+) .*epoch=(\d+)'):
            epochs.setdefault(match.group(1), set()).add(match.group(2))
    assert all(len(found) == 1 for found in epochs.values()), 'each session moved once'


class Talker:
    """A user who says the next line as soon as the server has echoed the last one."""

    def __init__(self, user, name):
        self.user, self.name = user, name
        self.heard = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            while True:
                self.user.say(f'line {self.heard}')
                while True:
                    line = self.user.hear()
                    if line == '':
                        return
                    if line.startswith(f'{self.name}: line {self.heard}'):
                        break
                self.heard += 1
        except OSError:
            return


def spans(server, room):
    """[(first ms, last ms)] of each connection of that room on that backend, and [ms] of its messages."""
    opened, closed, rooms, messages, latest = {}, {}, {}, [], 0
    for ms, kind, fields in server.events():
        latest = max(latest, ms)
        conn = fields.get('conn')
        if kind == 'open':
            opened[conn] = ms
        elif kind == 'close':
            closed[conn] = ms
        elif kind == 'join':
            rooms[conn] = fields.get('room')
        elif kind == 'message' and rooms.get(conn) == room:
            messages.append(ms)
    found = [(opened[conn], closed.get(conn, latest)) for conn, where in rooms.items() if where == room]
    return found, messages


def move_by_force(cluster, room, to):
    """ROUTE.MOVE ... FORCE by an operator; (connection with the reply under way, epoch that ends)."""
    client = cluster.client(60)
    lease = client('LEASE.GRANT', 30000)
    backend, epoch, *_ = client('ROUTE.GET', 'chat', room, 'LEASE', lease)
    client.send('ROUTE.MOVE', 'chat', room, epoch, 'LEASE', lease, to, 'FORCE')
    return client, backend


def exclusive_pair(three, chatd, proxy, lockd_of_first):
    servers = [chatd(name) for name in ('a', 'b')]
    one = proxy('p1', lockd_of_first, servers, **{'class': 'exclusive', 'subset': 2})
    two = proxy('p2', three.addresses, servers, **{'class': 'exclusive', 'subset': 2})
    return {s.name: s for s in servers}, one, two


def test_a_proxy_that_is_cut_off_lets_go_before_the_session_lives_elsewhere(three, chatd, proxy, relay):
    """Class exclusive: the backends' own logs show no overlapping connections of the session."""
    relays = [relay(address) for address in three.addresses]
    servers, one, two = exclusive_pair(three, chatd, proxy, [r.address for r in relays])
    user, old_name = joined(one.address, 'lobby', 'alice')
    talker = Talker(user, 'alice')
    timing.wait_for('alice to talk', lambda: talker.heard > 10)
    new_name = next(name for name in servers if name != old_name)
    for each in relays:
        each.cut()
    begin = timing.boot_ms()
    moving, _ = move_by_force(three, 'lobby', new_name)
    bob, backend = joined(two.address, 'lobby', 'bob', 30)  # asks while the move stalls
    reply = moving.receive(30)
    took = timing.boot_ms() - begin
    assert backend == new_name and reply[0] == new_name
    assert took > 500, f'the move took {took:.0f} ms: it did not wait for the cover of a proxy that nobody could ask'
    bob.say('after the move')
    assert bob.hear_until('bob: after the move')
    talker.thread.join(10)
    assert not talker.thread.is_alive(), 'the connection at the proxy without cover was not cut'
    old_spans, _ = spans(servers[old_name], 'lobby')
    new_spans, _ = spans(servers[new_name], 'lobby')
    assert old_spans and new_spans
    assert max(end for _, end in old_spans) <= min(start for start, _ in new_spans), (old_spans, new_spans)
    assert one.process.matches(r'session end reason=no-cover')
    for each in relays:
        each.heal()
    carol, backend = joined(one.address, 'lobby', 'carol', 30)
    assert backend == new_name, 'healed, it learns where the session lives now'


def test_a_proxy_that_was_stopped_writes_nothing_after_the_session_moved(three, chatd, proxy):
    """SIGSTOP instead of a cut: after the wake the clock is checked before any byte is written."""
    servers, one, two = exclusive_pair(three, chatd, proxy, three.addresses)
    user, old_name = joined(one.address, 'lobby', 'alice')
    talker = Talker(user, 'alice')
    timing.wait_for('alice to talk', lambda: talker.heard > 10)
    new_name = next(name for name in servers if name != old_name)
    one.stop()
    user.say('sent while the proxy was stopped')
    moving, _ = move_by_force(three, 'lobby', new_name)
    bob, backend = joined(two.address, 'lobby', 'bob', 30)
    assert moving.receive(30)[0] == new_name and backend == new_name
    bob.say('first line on the new one')
    assert bob.hear_until('bob: first line')
    user.say('sent after the move')
    one.cont()
    talker.thread.join(15)
    assert not talker.thread.is_alive(), 'the connection was not cut after the wake'
    _, old_messages = spans(servers[old_name], 'lobby')
    _, new_messages = spans(servers[new_name], 'lobby')
    assert old_messages and new_messages
    assert max(old_messages) < min(new_messages), f'{max(old_messages)} is not before {min(new_messages)}'


def query_of_death(three, chatd, proxy, seconds):
    servers = {f'b{n}': chatd(f'b{n}') for n in range(10)}
    one, two = (proxy(name, three.addresses, list(servers.values()), subset=2, load_bound_percent=FREE_LOAD)
                for name in ('p1', 'p2'))
    addresses = (one.address, two.address)
    rooms = [f'room{n}' for n in range(60)]
    placed = asyncio.run(place(addresses[0], rooms))
    end = timing.boot_ms() + seconds * 1000
    attempts = refused = 0
    while timing.boot_ms() < end:
        try:
            killer = User(addresses[attempts % 2], 10)
            attempts += 1
            if killer.join('poison', 'killer'):
                killer.say('die')
                killer.hear(10)
            else:
                refused += 1
            killer.close()
        except OSError:
            pass
        if refused:
            timing.pause(0.02, 'a client that reconnects as fast as a person or a small back-off would')
    dead = sorted(name for name, s in servers.items() if not s.process.running())
    assert 1 <= len(dead) <= 2, f'{len(dead)} backends died: {dead}'
    assert attempts > 10 and refused > 0
    return servers, one, two, rooms, placed, dead


def shard_of(three, room):
    client = three.client(30)
    lease = client('LEASE.GRANT', 10000)
    binding = client('ROUTE.GET', 'chat', room, 'LEASE', lease)
    client('LEASE.REVOKE', lease)
    return binding[4:]


def test_one_poisonous_session_kills_at_most_its_shard(three, chatd, proxy):
    """Ten backends, subset 2, a client that kills its backend on every reconnect through both proxies for 60 s."""
    servers, one, two, rooms, placed, dead = query_of_death(three, chatd, proxy, 60)
    shards = {room: shard_of(three, room) for room in rooms}
    assert all(len(shard) == 2 for shard in shards.values())
    for room in rooms:
        alive = [name for name in shards[room] if name not in dead]
        for address in (one.address, two.address):
            if alive:
                user, backend = joined(address, room, 'guest', 15)
                assert backend in alive
                if placed[room] not in dead:
                    assert backend == placed[room], f'{room} was moved although its backend lives'
                user.close()
            else:
                user = User(address)
                assert user.join(room, 'guest') == '', f'{room} is served although its shard {shards[room]} is dead'
    refusals = one.process.matches(r'reason=shard-down') + two.process.matches(r'reason=shard-down')
    assert refusals, 'the refused must be closed with reason shard-down'
    for name in dead:
        servers[name].start()
    for room in rooms + ['poison']:
        user, backend = joined(two.address, room, 'guest', 15)
        user.close()


def test_bytes_are_relayed_unchanged_in_both_directions_with_half_close(three, proxy, tmp_path):
    """A backend that sends back what it got, only after the client has said that it is done."""
    import hashlib
    import os
    import socket
    listener = socket.socket()
    listener.bind(('127.0.0.1', 0))
    listener.listen(64)
    payload = os.urandom(8 << 20)

    def serve(conn):
        with conn:
            got = bytearray()
            while True:
                data = conn.recv(1 << 16)
                if not data:
                    break
                got += data
            if got:
                conn.sendall(bytes(got))

    def accept():
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(conn,), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
    one = proxy('p1', three.addresses, [('echo', '127.0.0.1:%d' % listener.getsockname()[1])], keys=('source-ip',))
    host, port = one.address.rsplit(':', 1)
    with socket.create_connection((host, int(port)), 60) as client:
        writer = threading.Thread(target=lambda: (client.sendall(payload), client.shutdown(socket.SHUT_WR)))
        writer.start()
        digest, count = hashlib.sha256(), 0
        while True:
            data = client.recv(1 << 16)
            if not data:
                break
            digest.update(data)
            count += len(data)
        writer.join()
    listener.close()
    assert count == len(payload) and digest.digest() == hashlib.sha256(payload).digest()


def test_all_backends_down_is_a_state_and_not_an_exit(three, chatd, proxy):
    server = chatd('a')
    one = proxy('p1', three.addresses, [server], refuse_text='try again later')
    user, _ = joined(one.address, 'lobby', 'alice')
    server.kill9()
    assert user.hear(10) == ''
    one.process.wait_line(r'backend down .*backend=a\b')
    late = User(one.address)
    late.say('JOIN lobby bob')
    assert late.hear() == 'try again later'
    assert late.hear() == ''
    one.process.wait_line(r'session end reason=shard-down')
    server.start()
    one.process.wait_line(r'backend up .*backend=a\b')
    _, backend = joined(one.address, 'lobby', 'alice')
    assert backend == 'a'


def test_sticky_sessions_live_on_without_lockd(three, chatd, proxy, relay):
    """Class sticky: established connections stay, reconnects go to the last known binding, new sessions are placed."""
    relays = [relay(address) for address in three.addresses]
    servers = [chatd(name) for name in 'abc']
    one = proxy('p1', [r.address for r in relays], servers)
    alice, first = joined(one.address, 'lobby', 'alice')
    for each in relays:
        each.cut()
    one.process.wait_line(r'lockd lost', 20)
    alice.say('still here')
    assert alice.hear_until('alice: still here')
    _, backend = joined(one.address, 'lobby', 'bob', 30)
    assert backend == first
    _, backend = joined(one.address, 'elsewhere', 'carol', 30)
    assert backend in 'abc'
    for each in relays:
        each.heal()
    timing.wait_for('a new lease', lambda: len(one.process.matches(r'lockd lease id=')) >= 2, 30)
    _, backend = joined(one.address, 'lobby', 'dave', 30)
    assert backend == first


def test_every_session_ends_with_exactly_one_reason(three, chatd, proxy):
    server = chatd('a')
    one = proxy('p1', three.addresses, [server], key_timeout_ms=400)
    quits, _ = joined(one.address, 'r1', 'quits')
    quits.say('quit')
    while quits.hear(5) != '':
        pass
    hangs_up, _ = joined(one.address, 'r2', 'hangs-up')
    hangs_up.close()
    silent = User(one.address)
    assert silent.hear(10) == ''
    timing.wait_for('three endings', lambda: len(one.process.matches(r'session end ')) >= 3)
    reasons = [m.group(1) for m in one.process.matches(r'session end reason=(\S+)')]
    assert len(reasons) == 3 and all(re.fullmatch(r'[a-z-]+', r) for r in reasons)
    assert len(set(reasons)) >= 2
