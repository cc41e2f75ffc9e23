"""ngircd, a real IRC server from the packages, as session server behind two proxies; the test speaks IRC."""
import os
import re
import socket

import pytest

from harness import ports, timing
from harness.process import Process

SERVER = '''[Global]
Name = {name}.irc.test
Info = {name}
Listen = 127.0.0.1
Ports = {port}
MotdPhrase = "hello from {name}"
{uid}
[Limits]
MaxConnections = 0
MaxConnectionsIP = 0
MaxJoins = 0
[Options]
DNS = no
Ident = no
PAM = no
'''


@pytest.fixture
def ircd(tmp_path):
    def start(name):
        port = ports.port()
        config = tmp_path / f'{name}.conf'
        uid = 'ServerUID = nobody\nServerGID = nogroup' if os.getuid() == 0 else ''
        config.write_text(SERVER.format(name=name, port=port, uid=uid))
        server = Process(f'ngircd-{name}', ['/usr/sbin/ngircd', '-n', '-f', config], tmp_path)
        server.name = name

        def answers():
            assert server.running(), server.text()
            try:
                socket.create_connection(('127.0.0.1', port), 1).close()
                return True
            except OSError:
                return False
        timing.wait_for(f'ngircd {name} to listen', answers, every=0.01)
        return server, (name, f'127.0.0.1:{port}')
    return start


class Irc:
    """One IRC user.  `clan` is the user name of the USER line, which is what the proxies take as the session key."""

    def __init__(self, address, nick, clan):
        host, port = address.rsplit(':', 1)
        self.socket = socket.create_connection((host, int(port)), 20)
        self.nick, self.buffer, self.server = nick, b'', None
        self.say('CAP LS 302')
        self.say(f'NICK {nick}')
        self.say(f'USER {clan} 0 * :{nick} of {clan}')
        self.say('CAP END')
        line = self.hear(r'^:(\S+) 001 ')
        self.server = line.group(1).split('.')[0]

    def say(self, line):
        self.socket.sendall(line.encode() + b'\r\n')

    def hear(self, pattern, timeout=20):
        """The next line that matches; '' pattern lines are skipped, PINGs are answered."""
        self.socket.settimeout(timeout)
        while True:
            while b'\n' not in self.buffer:
                data = self.socket.recv(65536)
                if not data:
                    raise ConnectionError(f'{self.nick}: closed while waiting for /{pattern}/')
                self.buffer += data
            raw, self.buffer = self.buffer.split(b'\n', 1)
            line = raw.decode(errors='replace').rstrip('\r')
            if line.startswith('PING'):
                self.say('PONG' + line[4:])
            match = re.search(pattern, line)
            if match:
                return match

    def join(self, channel):
        self.say(f'JOIN {channel}')
        self.hear(rf' 366 {self.nick} {re.escape(channel)} ')

    def close(self):
        self.socket.close()


KEYS = ('line ^USER ([^ ]+)',)


def connect(address, nick, clan, seconds=20):
    """Connect until it is welcomed: while a session moves a proxy may refuse it."""
    got = []

    def tried():
        try:
            got.append(Irc(address, nick, clan))
            return True
        except OSError:
            return False
    timing.wait_for(f'{nick} to be welcomed', tried, seconds)
    return got[0]


def test_users_of_one_clan_meet_on_one_server_through_both_proxies(three, ircd, proxy):
    servers = [ircd(name) for name in ('alpha', 'beta', 'gamma')]
    backends = [backend for _, backend in servers]
    one, two = (proxy(name, three.addresses, backends, keys=KEYS) for name in ('p1', 'p2'))
    for clan in range(6):
        left = connect(one.address, f'left{clan}', f'clan{clan}')
        right = connect(two.address, f'right{clan}', f'clan{clan}')
        assert left.server == right.server
        left.join('#war')
        right.join('#war')
        left.say(f'PRIVMSG #war :hello from left {clan}')
        right.hear(rf'^:left{clan}!.* PRIVMSG #war :hello from left {clan}')
        right.say(f'PRIVMSG left{clan} :and back')
        left.hear(rf'^:right{clan}!.* PRIVMSG left{clan} :and back')
        left.say('QUIT :bye')
        right.say('QUIT :bye')


def test_when_an_irc_server_dies_its_clans_meet_again_on_one_other(three, ircd, proxy):
    servers = [ircd(name) for name in ('alpha', 'beta', 'gamma')]
    by_name = {backend[0]: server for server, backend in servers}
    one, two = (proxy(name, three.addresses, [b for _, b in servers], keys=KEYS, subset=2) for name in ('p1', 'p2'))
    clans = [f'clan{n}' for n in range(12)]
    users = {clan: connect(one.address, f'l{n}', clan) for n, clan in enumerate(clans)}
    victim = users[clans[0]].server
    stays = {clan for clan in clans if users[clan].server != victim}
    by_name[victim].kill9()
    for number, clan in enumerate(clans):
        if clan in stays:
            users[clan].say('PING :alive')
            users[clan].hear('alive')
            continue
        left = connect(one.address, f'L{number}', clan)
        right = connect(two.address, f'R{number}', clan)
        assert left.server == right.server != victim
        left.join('#again')
        right.join('#again')
        right.say('PRIVMSG #again :together')
        left.hear('PRIVMSG #again :together')
