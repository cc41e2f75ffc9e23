"""A child process whose output is read line by line as it comes, so that a test waits for a line, not for a while."""
import os
import re
import shlex
import signal
import subprocess
import threading
import time

from . import timing

_alive = []  # every process that was started and not yet seen to end


def binary(name):
    """Path of one of our programs: below $HOLDFAST_BUILD, or the first build directory that has it."""
    places = {'lockd': 'lockd/io/lockd', 'lockproxy': 'proxy/lockproxy', 'lockctl': 'client/lockctl', 'chatd': 'conf/demo/chatd'}
    root = os.path.realpath(os.path.join(os.path.dirname(__file__), '..', '..', '..'))
    folders = [os.environ['HOLDFAST_BUILD']] if 'HOLDFAST_BUILD' in os.environ else [
        os.path.join(root, folder) for folder in ('build-run/gcc', 'build')]
    for folder in folders:
        for path in (places[name], os.path.join(os.path.dirname(os.path.dirname(places[name])), name), name):
            full = os.path.join(folder, path)
            if os.access(full, os.X_OK) and os.path.isfile(full):
                return full
    raise AssertionError(f'no {name} in {" or ".join(folders)}: build first, or set HOLDFAST_BUILD')


class Process:
    def __init__(self, name, argv, folder, env=None, cwd=None):
        self.name, self.argv = name, [str(a) for a in argv]
        self.log_path = os.path.join(str(folder), f'{name}.log')
        self.lines = []
        self.changed = threading.Condition()
        self.ended = False
        self.stopped = False
        with open(self.log_path, 'a') as log:
            log.write(f'$ {shlex.join(self.argv)}\n')
        self.child = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, cwd=cwd, env=dict(os.environ, **(env or {})))
        self.pid = self.child.pid
        _alive.append(self)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with open(self.log_path, 'a', buffering=1) as log:
            for raw in self.child.stdout:
                line = raw.decode(errors='replace').rstrip('\n')
                log.write(line + '\n')
                with self.changed:
                    self.lines.append(line)
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def mark(self):
        """Where the log is now: pass it as `since` to look only at what comes later."""
        with self.changed:
            return len(self.lines)

    def matches(self, pattern, since=0):
        compiled = re.compile(pattern)
        with self.changed:
            return [m for m in map(compiled.search, self.lines[since:]) if m]

    def wait_line(self, pattern, timeout=None, since=0):
        """The first match in the log from `since` on; waits for it."""
        timeout = timing.DEFAULT_S if timeout is None else timeout
        compiled = re.compile(pattern)
        end = time.monotonic() + timeout
        with self.changed:
            at = since
            while True:
                while at < len(self.lines):
                    match = compiled.search(self.lines[at])
                    if match:
                        return match
                    at += 1
                left = end - time.monotonic()
                if self.ended or left <= 0:
                    tail = '\n'.join(self.lines[-15:])
                    state = 'ended' if self.ended else f'said nothing like it for {timeout:.0f} s'
                    raise AssertionError(f'{self.name} {state}: no line /{pattern}/; last lines:\n{tail}')
                self.changed.wait(left)

    def running(self):
        return self.child.poll() is None

    def wait(self, timeout=None):
        """Exit status (negative: signal); its whole output has been read then."""
        status = self.child.wait(timing.DEFAULT_S if timeout is None else timeout)
        self.reader.join(5)
        if self in _alive:
            _alive.remove(self)
        return status

    def signal(self, number):
        if self.running():
            self.child.send_signal(number)

    def kill9(self):
        self.signal(signal.SIGKILL)
        return self.wait()

    def term(self, timeout=None):
        """A clean stop; returns the exit status."""
        if self.stopped:
            self.cont()
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def stop(self):
        """SIGSTOP, and back only when the kernel says it is stopped."""
        self.signal(signal.SIGSTOP)
        self.stopped = True
        timing.wait_for(f'{self.name} to be stopped', lambda: self._state() in 'Tt', every=0.002)

    def cont(self):
        self.stopped = False
        self.signal(signal.SIGCONT)

    def _state(self):
        with open(f'/proc/{self.pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0]

    def text(self):
        with self.changed:
            return '\n'.join(self.lines)


def run(argv, timeout=None, env=None, stdin=None, cwd=None):
    """A program that ends by itself: (exit status, standard output, standard error)."""
    done = subprocess.run([str(a) for a in argv], input=stdin, capture_output=True, text=True, cwd=cwd,
                          timeout=timing.DEFAULT_S if timeout is None else timeout, env=dict(os.environ, **(env or {})))
    return done.returncode, done.stdout, done.stderr


def end_all():
    """End what a test left running: only processes that it started, by pid."""
    left = list(_alive)
    for process in left:
        if process.running():
            process.child.kill()
    for process in left:
        process.wait()
