"""Real lockd processes, each in a network namespace, on a disk and in control groups of its own, and what is done to
them.  Whatever a World makes carries its number in its name; a second process takes everything away when the first
ends, however it ends.
"""
import fcntl
import json
import mmap
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / 'e2e'))
from harness import timing                               # noqa: E402
from harness.resp import Client, ReplyError, pairs       # noqa: E402

CLIENT_PORT, PEER_PORT = 7400, 7411
DISK_BYTES = 1 << 30          # sparse
LOCKS = pathlib.Path('/run/holdfast-nemesis')
WORLDS = 200


class CannotRun(Exception):
    """The machine lacks what every fault needs."""


def sh(*argv, check=True, quiet=True):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        raise RuntimeError(f'{" ".join(map(str, argv))}: {done.stderr.strip() or done.stdout.strip()}')
    return done.stdout


def now_us():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


# ---- control groups: version 1 beside version 2, or version 2 alone ----

def group_root(controller):
    """(version, directory) where groups of that controller are made; None if the machine has none."""
    v1 = pathlib.Path('/sys/fs/cgroup') / controller
    if (v1 / 'cgroup.procs').exists() and (v1 / 'tasks').exists():
        return 1, v1
    for v2 in (pathlib.Path('/sys/fs/cgroup'), pathlib.Path('/sys/fs/cgroup/unified')):
        if not (v2 / 'cgroup.controllers').exists():
            continue
        if controller == 'freezer':
            return 2, v2
        name = {'blkio': 'io'}.get(controller, controller)
        if name in (v2 / 'cgroup.controllers').read_text().split():
            try:
                (v2 / 'cgroup.subtree_control').write_text(f'+{name}')
            except OSError:
                return None
            return 2, v2
    return None


CONTROLLERS = ('cpu', 'memory', 'blkio', 'freezer')


# ---- taking everything away ----

def clean_up(number, folder, count, keep):
    """Everything that world `number` may have made; each step whether or not the others work."""
    name = f'hf{number}'
    folder = pathlib.Path(folder)
    groups = []
    for controller in CONTROLLERS:
        found = group_root(controller)
        if found:
            groups += [found[1] / f'{name}n{i + 1}' for i in range(count)]
    for group in groups:
        for file, text in (('freezer.state', 'THAWED'), ('cgroup.freeze', '0')):
            try:
                if (group / file).exists():
                    (group / file).write_text(text)
            except OSError:
                pass
    disks = [folder / f'n{i + 1}' / 'disk' for i in range(count)]
    for disk in disks:
        sh('fsfreeze', '-u', disk, check=False)
    for i in range(count):
        for _ in range(50):
            pids = sh('ip', 'netns', 'pids', f'{name}n{i + 1}', check=False).split()
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except OSError:
                    pass
            if not pids:
                break
            timing.pause(0.02, 'they are ending')
    for disk in disks:
        sh('umount', disk, check=False)
        if disk.is_mount():
            sh('umount', '-l', disk, check=False)
    for i in range(count):
        sh('ip', 'link', 'del', f'{name}v{i + 1}', check=False)
        sh('ip', 'netns', 'del', f'{name}n{i + 1}', check=False)
    sh('ip', 'link', 'del', f'{name}br', check=False)
    sh('nft', 'delete', 'table', 'bridge', name, check=False)
    for group in groups:
        for _ in range(20):
            try:
                group.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:
                timing.pause(0.02, 'they are ending')
    if keep():
        for i in range(count):
            (folder / f'n{i + 1}' / 'disk.img').unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def start_cleaner(number, folder, count):
    """A process that waits for our end and then cleans up; returns (its pid, the descriptor that it waits on)."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid != 0:
        os.close(read_end)
        return pid, write_end
    os.setsid()
    os.close(write_end)
    for number_of_signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number_of_signal, signal.SIG_IGN)
    words = b''
    while True:
        got = os.read(read_end, 100)
        if not got:
            break
        words += got
    try:
        clean_up(number, folder, count, lambda: words != b'remove')
    finally:
        os._exit(0)


# ---- a node ----

class ClockFile:
    """The setting that clock.c reads; see there."""
    FORMAT = '<Qqqqq'

    def __init__(self, path):
        path.write_bytes(bytes(4096))
        with open(path, 'r+b') as file:
            self.memory = mmap.mmap(file.fileno(), 4096)
        self.turn, self.wall, self.rate, self.real, self.shown = 0, 0, 0, 0, 0

    def _shown_now(self, real):
        return self.shown + int((real - self.real) * (1 + self.rate / 1e6))

    def set(self, wall_s=None, rate_ppm=None):
        real = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if rate_ppm is not None:
            self.shown, self.real, self.rate = self._shown_now(real), real, rate_ppm
        if wall_s is not None:
            self.wall = int(wall_s * 1e9)
        self.turn += 2
        struct.pack_into('<Q', self.memory, 0, self.turn - 1)
        struct.pack_into('<qqqq', self.memory, 8, self.wall, self.rate, self.real, self.shown)
        struct.pack_into('<Q', self.memory, 0, self.turn)


class Node:
    def __init__(self, world, index):
        self.world, self.index, self.number = world, index, index + 1
        self.name = f'n{self.number}'
        self.space = f'{world.name}n{self.number}'
        self.veth = f'{world.name}v{self.number}'
        self.ip = f'10.231.{world.number}.{self.number}'
        self.address = f'{self.ip}:{CLIENT_PORT}'
        self.peer_address = f'{self.ip}:{PEER_PORT}'
        self.folder = world.folder / self.name
        self.disk = self.folder / 'disk'
        self.data = self.disk / 'data'
        self.config = self.folder / 'lockd.conf'
        self.log = self.folder / 'log'
        self.child = None
        self.may_end = True      # whether its end now is our doing
        self.wiped = False
        self.clock = None

    def __str__(self):
        return self.name

    def make(self):
        w = self.world
        self.disk.mkdir(parents=True)
        self.log.write_bytes(b'')
        self.clock = ClockFile(self.folder / 'clock')
        sh('ip', 'netns', 'add', self.space)
        sh('ip', 'link', 'add', self.veth, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', self.space)
        sh('ip', 'link', 'set', self.veth, 'master', w.bridge, 'up')
        sh('ip', '-n', self.space, 'addr', 'add', f'{self.ip}/24', 'dev', 'eth0')
        sh('ip', '-n', self.space, 'link', 'set', 'eth0', 'up')
        sh('ip', '-n', self.space, 'link', 'set', 'lo', 'up')
        for version, root in w.groups.values():
            (root / self.space).mkdir(exist_ok=True)
        if w.loop:
            image = self.folder / 'disk.img'
            with open(image, 'wb') as file:
                file.truncate(DISK_BYTES)
            sh('mkfs.ext4', '-q', '-F', '-m', '0', '-J', 'size=8', '-E', 'lazy_itable_init=1,nodiscard', image)
            sh('mount', '-o', 'loop', image, self.disk)

    def write_config(self):
        lines = [f'listen = "{self.address}"', f'data-dir = "{self.data}"', f'node = {self.number}',
                 'nodes = {' + ', '.join(f'"{n.peer_address}"' for n in self.world.nodes) + '}']
        lines += [f'{key} = {value}' for key, value in self.world.keys.items()]
        self.config.write_text('\n'.join(lines) + '\n')

    def start(self):
        assert self.child is None or self.child.poll() is not None
        self.may_end = False
        groups = [str(root / self.space / 'cgroup.procs') for _, root in self.world.groups.values()]
        shim = self.world.clock_library
        setting = [f'LD_PRELOAD={shim}', f'NEMESIS_CLOCK={self.folder / "clock"}'] if shim else []
        self.started_at = self.log.stat().st_size
        with open(self.log, 'ab') as log:
            self.child = subprocess.Popen(
                ['sh', '-c', 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"', 'sh', *groups, '--',
                 'nsenter', f'--net=/run/netns/{self.space}', 'env', *setting, str(self.world.lockd), '--config',
                 str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        return self

    def log_text(self, since=0):
        with open(self.log, 'rb') as file:
            file.seek(since)
            return file.read().decode(errors='replace')

    def running(self):
        return self.child is not None and self.child.poll() is None

    def dying(self):
        """Killed, but the kernel still has to take it down (one that met its memory limit, for example)."""
        if not self.running():
            return False
        try:
            status = pathlib.Path(f'/proc/{self.child.pid}/status').read_text()
            flags = int(pathlib.Path(f'/proc/{self.child.pid}/stat').read_text().rsplit(')', 1)[1].split()[6])
        except OSError:
            return True
        pending = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(('SigPnd', 'ShdPnd'))]
        return bool(flags & 4) or any(mask >> (signal.SIGKILL - 1) & 1 for mask in pending)

    def listening(self):
        return self.running() and 'lockd listening' in self.log_text(self.started_at)

    def wait_listening(self, timeout=30):
        def state():
            if not self.running():
                raise RuntimeError(f'{self.name} ended: {self.last_line()}')
            return self.listening()
        timing.wait_for(f'{self.name} to listen', state, timeout)

    def last_line(self):
        lines = self.log_text(self.started_at).strip().splitlines()
        return lines[-1] if lines else '(no log line)'

    def kill9(self):
        self.may_end = True
        self.child.kill()
        self.child.wait()

    def term(self, timeout=20):
        self.may_end = True
        self.child.terminate()
        return self.child.wait(timeout)

    def wait_end(self, timeout):
        """Exit status, or None if it goes on."""
        try:
            return self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self):
        self.child.send_signal(signal.SIGSTOP)
        self.world.undo(self.cont)

    def cont(self):
        if self.running():
            self.child.send_signal(signal.SIGCONT)

    def ask(self, *words, timeout=1.0):
        with Client(self.address, timeout) as client:
            return client(*words)

    def status(self, timeout=0.5):
        """NODE.STATUS as a dictionary; None if it does not answer."""
        if not self.running():
            return None
        try:
            return pairs(self.ask('NODE.STATUS', timeout=timeout))
        except (OSError, ReplyError):
            return None

    # control groups

    def group(self, controller):
        version, root = self.world.groups[controller]
        return version, root / self.space

    def freeze(self):
        version, group = self.group('freezer')
        self.world.undo(self.thaw)
        (group / ('freezer.state' if version == 1 else 'cgroup.freeze')).write_text('FROZEN' if version == 1 else '1')

    def thaw(self):
        version, group = self.group('freezer')
        (group / ('freezer.state' if version == 1 else 'cgroup.freeze')).write_text('THAWED' if version == 1 else '0')

    def throttle_cpu(self, percent):
        version, group = self.group('cpu')

        def put(quota):
            if version == 1:
                (group / 'cpu.cfs_quota_us').write_text(str(quota))
            else:
                (group / 'cpu.max').write_text(f'{"max" if quota < 0 else quota} 100000')
        self.world.undo(lambda: put(-1))
        put(percent * 1000)

    def squeeze_memory(self):
        """As little memory as the kernel can be talked into; what it needs more from now on may end it."""
        version, group = self.group('memory')
        file = group / ('memory.limit_in_bytes' if version == 1 else 'memory.max')
        used = int((group / ('memory.usage_in_bytes' if version == 1 else 'memory.current')).read_text())

        def off():
            file.write_text('-1' if version == 1 else 'max')
        self.world.undo(off)
        for percent in range(100, 20, -4):
            try:
                file.write_text(str(used * percent // 100))
            except OSError:
                break

    def device(self):
        status = os.stat(self.disk)
        return f'{os.major(status.st_dev)}:{os.minor(status.st_dev)}'

    def throttle_disk(self, bytes_per_s):
        """Version 2 only: version 1 lets buffered writes pass."""
        _, group = self.group('blkio')
        device = self.device()

        def put(limit):
            (group / 'io.max').write_text(f'{device} wbps={limit or "max"}')
        self.world.undo(lambda: put(0))
        put(bytes_per_s)

    # disk

    def stall_disk(self):
        """Nothing is written any more until the undo."""
        self.world.undo(lambda: sh('fsfreeze', '-u', self.disk, check=False))
        sh('fsfreeze', '-f', self.disk)

    def fill_disk(self, leave_bytes):
        ballast = self.disk / 'ballast'
        self.world.undo(lambda: ballast.unlink(missing_ok=True))
        left = os.statvfs(self.disk)
        take, at = left.f_bavail * left.f_bsize - leave_bytes, 0
        chunk = take
        with open(ballast, 'wb') as file:
            while take > 0 and chunk >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), at, min(chunk, take))
                    at, take = at + chunk, take - chunk
                except OSError:
                    chunk //= 2  # the file system wants some for itself

    def inject(self, what):
        """strace on the running process: what it injects is strace's -e inject=..."""
        child = subprocess.Popen(['strace', '-f', '-qq', '-o', '/dev/null', '-p', str(self.child.pid), '-e',
                                  'inject=' + what], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)

        def traced():
            with open(f'/proc/{self.child.pid}/status') as file:
                return child.poll() is not None or 'TracerPid:\t0' not in file.read()

        def detach():
            if child.poll() is None:
                child.terminate()
                child.wait()
        self.world.undo(detach)
        timing.wait_for('strace to attach', lambda: not self.running() or traced(), 5)
        if self.running() and child.poll() is not None:
            raise RuntimeError('strace cannot attach')

    # network, inside

    def tool(self, *argv, check=True):
        return sh('ip', 'netns', 'exec', self.space, *argv, check=check)

    def shape(self, rate):
        """A bandwidth limit on what it sends and on what it is sent."""
        words = ['root', 'tbf', 'rate', rate, 'burst', '4kb', 'latency', '500ms']
        self.world.undo(lambda: (sh('tc', 'qdisc', 'del', 'dev', self.veth, 'root', check=False),
                                 sh('tc', '-n', self.space, 'qdisc', 'del', 'dev', 'eth0', 'root', check=False)))
        sh('tc', 'qdisc', 'replace', 'dev', self.veth, *words)
        sh('tc', '-n', self.space, 'qdisc', 'replace', 'dev', 'eth0', *words)

    def rules(self, text):
        """An nft ruleset inside its namespace."""
        done = subprocess.run(['ip', 'netns', 'exec', self.space, 'nft', '-f', '-'], input=text, capture_output=True,
                              text=True)
        if done.returncode != 0:
            raise RuntimeError('nft: ' + done.stderr.strip().splitlines()[0])
        self.world.undo(lambda: self.tool('nft', 'flush', 'ruleset', check=False))

    def link(self, up):
        sh('ip', 'link', 'set', self.veth, 'up' if up else 'down')
        if not up:
            self.world.undo(lambda: sh('ip', 'link', 'set', self.veth, 'up'))

    def hold_packets(self, min_ms, max_ms, seed):
        """Each packet from another node comes in after a time of its own."""
        rule = ['-s', f'10.231.{self.world.number}.0/28', '-j', 'NFQUEUE', '--queue-num', '1']
        child = subprocess.Popen(['ip', 'netns', 'exec', self.space, str(self.world.delay_program), '1', str(min_ms),
                                  str(max_ms), str(seed)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

        def off():
            self.tool('iptables', '-D', 'INPUT', *rule, check=False)
            child.terminate()
            child.wait()
        self.world.undo(off)
        if child.stdout.readline() != 'ready\n':
            raise RuntimeError('nemesis-delay: no queue')
        self.tool('iptables', '-A', 'INPUT', *rule)


# ---- all of them ----

class World:
    def __init__(self, build, count, keys, folder):
        self.build = pathlib.Path(build).resolve()
        self.lockd = self._binary('lockd/io/lockd')
        clock = self.build / 'tests/nemesis/nemesis-clock.so'
        delay = self.build / 'tests/nemesis/nemesis-delay'
        self.clock_library = clock if clock.exists() else None
        self.delay_program = delay if delay.exists() else None
        self.lincheck = self._binary('tests/sim/lincheck')
        if os.geteuid() != 0:
            raise CannotRun('network namespaces need root')
        for tool in ('ip', 'nft', 'nsenter'):
            if shutil.which(tool) is None:
                raise CannotRun(f'no {tool} (conf/install-deps test)')
        self._take_number()
        self.name = f'hf{self.number}'
        self.bridge = f'{self.name}br'
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.undos = []
        self.groups = {c: found for c in CONTROLLERS for found in [group_root(c)] if found}
        self.loop = all(shutil.which(t) for t in ('mkfs.ext4', 'losetup', 'fsfreeze')) and \
            os.path.exists('/dev/loop-control')
        self.cleaner, self.alive = start_cleaner(self.number, self.folder, count)
        self.nodes = []
        self.nodes = [Node(self, i) for i in range(count)]
        self.majority_count = count // 2 + 1
        self._make()
        self.keys = {key: value for key, value in keys.items() if self._knows(key, value)}

    def _binary(self, path):
        full = self.build / path
        if not os.access(full, os.X_OK):
            raise CannotRun(f'no {full}: build first (--build, HOLDFAST_BUILD)')
        return full

    def _take_number(self):
        LOCKS.mkdir(exist_ok=True)
        for number in range(WORLDS):
            descriptor = os.open(LOCKS / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # the cleaner inherits it, so the number is free again only when all is gone
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                continue
            self.number, self.lock = number, descriptor
            return
        raise CannotRun('too many of us')

    def _make(self):
        clean_up(self.number, self.folder, len(self.nodes), lambda: True)  # of one whose cleaner was killed too
        first = self.nodes[0].space
        try:
            sh('ip', 'link', 'add', self.bridge, 'type', 'bridge')
            sh('ip', 'addr', 'add', f'10.231.{self.number}.254/24', 'dev', self.bridge)
            sh('ip', 'link', 'set', self.bridge, 'up')
            sh('ip', 'netns', 'add', first)
            sh('ip', '-n', first, 'link', 'set', 'lo', 'up')  # fails in a chroot whose / is no mount point
            sh('ip', 'netns', 'del', first)
        except RuntimeError as error:
            raise CannotRun(f'networks of our own cannot be made here: {error}') from None
        for node in self.nodes:
            try:
                node.make()
            except RuntimeError as error:
                if not self.loop or 'mount' not in str(error):
                    raise
                self.loop = False  # no loop devices here: plain directories, and no faults of whole disks

    def _knows(self, key, value):
        path = self.folder / 'try.conf'
        path.write_text(f'{key} = {value}\n')
        return subprocess.run([self.lockd, '--check', '--config', path], capture_output=True).returncode == 0

    def start(self):
        for node in self.nodes:
            node.write_config()
            node.start()
        for node in self.nodes:
            node.wait_listening()
        self.leader()

    def close(self, keep):
        """Take everything away; the folder too unless it is to be kept."""
        if not keep:
            os.write(self.alive, b'remove')
        os.close(self.alive)
        os.close(self.lock)
        os.waitpid(self.cleaner, 0)

    # who is what

    def statuses(self):
        return {node: status for node in self.nodes for status in [node.status()] if status}

    def leader(self, timeout=20):
        """The node that leads under the highest ballot."""
        def found():
            best = None
            for node, status in self.statuses().items():
                if status['role'] != 'leader':
                    continue
                key = [int(part) for part in str(status['ballot']).split('.')]
                if best is None or key > best[0]:
                    best = (key, node)
            return best and best[1]
        return timing.wait_for('a leader', found, timeout)

    def others(self, *but):
        return [node for node in self.nodes if node not in but]

    def commands(self):
        """What this lockd can do."""
        return set(name.upper() for name in self.nodes[0].ask('COMMAND', 'LIST'))

    # undoing

    def undo(self, step):
        self.undos.append(step)

    def heal(self):
        """Undo everything, last first."""
        while self.undos:
            self.undos.pop()()

    # the network between them

    def cut(self, pairs_of_nodes, match=''):
        """Drop what the first of each pair sends to the second; None stands for the clients.  Until healed."""
        lines = {'forward': [], 'input': [], 'output': []}
        for source, target in pairs_of_nodes:
            if target is None:
                lines['input'].append(f'iifname "{source.veth}" {match} drop')
            elif source is None:
                lines['output'].append(f'oifname "{target.veth}" {match} drop')
            else:
                lines['forward'].append(f'iifname "{source.veth}" oifname "{target.veth}" {match} drop')
        self.filter(lines)

    def filter(self, lines):
        """One table, replaced as a whole."""
        text = f'table bridge {self.name} {{\n}}\ndelete table bridge {self.name}\n'
        if lines:
            text += f'table bridge {self.name} {{\n'
            for hook, rules in lines.items():
                text += f'chain {hook} {{\ntype filter hook {hook} priority 0; policy accept;\n' + \
                        ''.join(rule + '\n' for rule in rules) + '}\n'
            text += '}\n'
            if self._no_filter not in self.undos:
                self.undo(self._no_filter)
        done = subprocess.run(['nft', '-f', '-'], input=text, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError('nft: ' + done.stderr.strip().splitlines()[0])

    def _no_filter(self):
        self.filter({})

    def both_ways(self, ones, others):
        return [(a, b) for a in ones for b in others] + [(b, a) for a in ones for b in others]

    # what the logs say

    def marks(self):
        return {node: node.log.stat().st_size for node in self.nodes}

    def leaders_since(self, marks):
        """The ballots under which a node said that it leads, in no order."""
        found = set()
        for node, mark in marks.items():
            for line in node.log_text(mark).splitlines():
                if ' replica leader ' in line:
                    words = dict(word.split('=', 1) for word in line.split() if '=' in word)
                    found.add(words.get('ballot'))
        return found


__all__ = ['World', 'Node', 'CannotRun', 'Client', 'ReplyError', 'pairs', 'timing', 'now_us', 'json', 'threading', 'sh']
