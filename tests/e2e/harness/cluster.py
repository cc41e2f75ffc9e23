"""A cluster of lockd processes on loopback, each with its own directory below the test's."""
import os
import shutil
import socket

from . import ports, timing
from .process import Process, binary
from .relay import Relay
from .resp import Client, ReplyError, pairs


class Node:
    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.address = ports.address()
        self.peer_address = ports.address()
        self.folder = os.path.join(str(cluster.folder), f'n{number}')
        self.data = os.path.join(self.folder, 'data')
        self.config = os.path.join(self.folder, 'lockd.conf')
        os.makedirs(self.folder, exist_ok=True)
        self.process = None
        self.starts = 0

    def write_config(self, **keys):
        peers = ', '.join(f'"{self.cluster.way(self, n)}"' for n in self.cluster.nodes)
        lines = [f'listen = "{self.address}"', f'data-dir = "{self.data}"']
        if len(self.cluster.nodes) > 1:
            lines += [f'node = {self.number}', f'nodes = {{{peers}}}']
        for key, value in {**self.cluster.keys, **keys}.items():
            shown = f'"{value}"' if isinstance(value, str) else value
            lines.append(f'{key.replace("_", "-")} = {shown}')
        with open(self.config, 'w') as file:
            file.write('\n'.join(lines) + '\n')

    def start(self, *options, wrapper=()):
        """Start it; `wrapper` is a command to run it under (strace)."""
        assert self.process is None or not self.process.running()
        self.starts += 1
        self.process = Process(f'lockd-{self.number}.{self.starts}',
                               [*wrapper, binary('lockd'), '--config', self.config, *options], self.folder)
        return self

    def wait_listening(self):
        self.process.wait_line(r'lockd listening')
        return self

    def client(self, timeout=None):
        return Client(self.address, timeout)

    def kill9(self):
        return self.process.kill9()

    def term(self):
        return self.process.term()

    def stop(self):
        self.process.stop()

    def cont(self):
        self.process.cont()

    def up(self):
        return self.process is not None and self.process.running() and not self.process.stopped

    def wipe(self):
        assert not self.process.running()
        shutil.rmtree(self.data)

    def status(self):
        """NODE.STATUS as a dictionary; None if the node cannot be asked now."""
        if not self.up():
            return None
        try:
            with self.client(2 * timing.SLOW) as client:
                return pairs(client('NODE.STATUS'))
        except (OSError, ReplyError):
            return None


class Cluster:
    """cluster = Cluster(folder, 3, key_name=value ...); keys are lockd's, with underscores.

    relayed: the nodes speak through a relay for each direction, so that a test can cut(from, to).
    """

    def __init__(self, folder, count=3, relayed=False, **keys):
        self.folder, self.keys = folder, keys
        self.relays = {}
        self.nodes = []
        self.nodes = [Node(self, number + 1) for number in range(count)]
        if relayed:
            self.relays = {(a, b): Relay(b.peer_address) for a in self.nodes for b in self.nodes if a is not b}
        for node in self.nodes:
            node.write_config()

    def way(self, source, target):
        """The address by which one node reaches another; a node sends only on the links that it dialled."""
        return self.relays[source, target].address if (source, target) in self.relays else target.peer_address

    def cut(self, source, target):
        """Nothing that `source` says reaches `target`; None stands for every other node."""
        for (a, b), relay in self.relays.items():
            if source in (a, None) and target in (b, None):
                relay.cut()

    def cut_off(self, node):
        self.cut(node, None)
        self.cut(None, node)

    def heal(self):
        for relay in self.relays.values():
            relay.heal()

    def close(self):
        for relay in self.relays.values():
            relay.close()

    def start(self):
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_listening()
        self.wait_leader()
        return self

    @property
    def addresses(self):
        return [node.address for node in self.nodes]

    def leader(self):
        """The node that says it leads under the highest ballot, or None."""
        best = None
        for node in self.nodes:
            status = node.status()
            if status and status['role'] == 'leader':
                ballot = str(status['ballot'])
                key = [int(part) for part in ballot.replace('/', '.').replace(':', '.').split('.') if part.isdigit()]
                if best is None or key > best[0]:
                    best = (key, node)
        return best[1] if best else None

    def wait_leader(self, but=None, timeout=None):
        """The leader, once there is one (other than `but`)."""
        def found():
            node = self.leader()
            return node if node is not but else None
        return timing.wait_for('a leader', found, timeout or timing.DEFAULT_S)

    def followers(self):
        leader = self.wait_leader()
        return [node for node in self.nodes if node is not leader and node.up()]

    def client(self, timeout=None):
        """A client of any node that is up."""
        for node in self.nodes:
            if node.up():
                try:
                    return node.client(timeout)
                except (OSError, socket.timeout):
                    continue
        raise AssertionError('no node is up')

    def call(self, *words, timeout=None):
        """One command, asked again on any node while the answer is that it did not run."""
        answer = []

        def tried():
            for node in self.nodes:
                if not node.up():
                    continue
                try:
                    with node.client(12 * timing.SLOW) as client:
                        reply = client.ask(*words)
                except OSError:
                    continue
                if isinstance(reply, ReplyError) and reply.code in ('CLUSTERDOWN', 'LOADING', 'BUSY'):
                    continue
                answer.append(reply)
                return True
            return False
        timing.wait_for(f'an answer to {words[0]}', tried, timeout or timing.DEFAULT_S)
        if isinstance(answer[0], ReplyError):
            raise answer[0]
        return answer[0]

    def stop_all(self):
        for node in self.nodes:
            if node.process is not None and node.process.running():
                assert node.term() == 0, node.process.text()[-2000:]
