#!/usr/bin/python3
"""lockctl under an interactive shell: the command owns the terminal, Ctrl-C and Ctrl-Z reach it, and a lockctl that stays
stopped loses its lock.  Usage: test_terminal.py LOCKCTL.  The shell runs on a pseudo terminal; lockd is a few lines here."""
import os
import pty
import select
import signal
import socketserver
import sys
import threading
import time

LIMIT_S = 20


class Lockd(socketserver.StreamRequestHandler):
    """Every lease is 7 and lives as long as it wants, every lock is free, every token is 42."""

    def handle(self):
        ttl = 0
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2].decode())
            if words[0] == 'LEASE.GRANT':
                ttl = int(words[1])
            self.wfile.write({'LEASE.GRANT': b':7\r\n', 'LOCK.ACQUIRE': b':42\r\n', 'LOCK.RELEASE': b':1\r\n',
                              'LEASE.REVOKE': b':1\r\n', 'LEASE.KEEPALIVE': b'*1\r\n:%d\r\n' % ttl}.get(words[0], b'+OK\r\n'))


class Shell:
    def __init__(self, server):
        self.seen, self.unread = '', ''
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(PS1='READY> ', HOLDFAST_SERVER=server, INPUTRC='/dev/null', TERM='dumb')
            os.execv('/bin/bash', ['bash', '--norc', '--noprofile', '--noediting', '-i'])
        self.expect('READY> ')
        self.run('set -b')

    def send(self, text):
        os.write(self.fd, text.encode())

    def expect(self, text):
        limit = time.monotonic() + LIMIT_S
        while text not in self.unread:
            ready, _, _ = select.select([self.fd], [], [], max(0, limit - time.monotonic()))
            assert ready, f'{text!r} did not come; last was {(self.seen + self.unread)[-400:]!r}'
            self.unread += os.read(self.fd, 4096).decode(errors='replace')
        before, _, self.unread = self.unread.partition(text)
        self.seen += before + text
        return before

    def run(self, line):
        self.send(line + '\n')
        self.expect(line)
        return self.expect('READY> ')

    def status(self):
        return int(self.run('echo $?').split()[0])

    def until_foreground(self, name):
        """Until a process of that name leads the group that owns the terminal."""
        limit = time.monotonic() + LIMIT_S
        while time.monotonic() < limit:
            try:
                with open(f'/proc/{os.tcgetpgrp(self.fd)}/comm') as file:
                    if file.read().strip() == name:
                        return
            except OSError:
                pass
            select.select([], [], [], 0.005)
        raise AssertionError(f'{name} never came to the foreground')

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def typed_lines_reach_the_command(shell, lockctl):
    shell.send(f'{lockctl} lock x -- cat\n')
    shell.until_foreground('cat')
    shell.send('hello\n')
    shell.expect('hello\r\nhello\r\n')
    shell.send('\x04')
    shell.expect('READY> ')
    assert shell.status() == 0


def ctrl_c_ends_the_command(shell, lockctl):
    shell.send(f'{lockctl} lock x -- cat\n')
    shell.until_foreground('cat')
    shell.send('\x03')
    shell.expect('READY> ')
    assert shell.status() == 128 + signal.SIGINT


def ctrl_z_stops_both_and_fg_continues_both(shell, lockctl):
    shell.send(f'{lockctl} lock x --ttl 60000 -- cat\n')
    shell.until_foreground('cat')
    shell.send('\x1a')
    shell.expect('Stopped')
    shell.expect('READY> ')
    shell.send('fg\n')
    shell.until_foreground('cat')
    shell.send('again\n')
    shell.expect('again\r\nagain\r\n')
    shell.send('\x04')
    shell.expect('READY> ')
    assert shell.status() == 0


def stopped_too_long_is_lost(shell, lockctl):
    shell.send(f'{lockctl} lock x --ttl 1000 -- cat\n')
    shell.until_foreground('cat')
    shell.send('\x1a')
    shell.expect('Stopped')
    shell.expect('READY> ')
    shell.run('while pgrep -x -t "$(tty | cut -c6-)" cat; do :; done')  # the guard has ended it
    shell.send('fg\n')
    shell.expect('READY> ')
    assert shell.status() == 5


def background_job_leaves_the_terminal_alone(shell, lockctl):
    shell.send(f'{lockctl} lock x --ttl 60000 -- cat &\n')
    shell.expect('Stopped')  # by SIGTTIN: cat reads
    shell.send('\n')
    shell.expect('READY> ')
    assert 'still' in shell.run('echo still here')
    shell.send('fg\n')
    shell.until_foreground('cat')
    shell.send('yes\n')
    shell.expect('yes\r\nyes\r\n')
    shell.send('\x04')
    shell.expect('READY> ')
    assert shell.status() == 0


def closed_descriptors_do_no_harm(shell, lockctl):
    shell.run(f'{lockctl} lock x -- sh -c "exit 7" <&- >&- 2>&-')
    assert shell.status() == 7


def main():
    tests = [typed_lines_reach_the_command, ctrl_c_ends_the_command, ctrl_z_stops_both_and_fg_continues_both,
             stopped_too_long_is_lost, background_job_leaves_the_terminal_alone,
             closed_descriptors_do_no_harm]
    lockctl, wanted = os.path.realpath(sys.argv[1]), sys.argv[2:]
    server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Lockd)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    failed = 0
    print(f'1..{len(tests)}')
    for number, test in enumerate(tests, 1):
        if wanted and test.__name__ not in wanted:
            continue
        shell = Shell(f'127.0.0.1:{server.server_address[1]}')
        try:
            test(shell, lockctl)
            print(f'ok {number} - {test.__name__}', flush=True)
        except AssertionError as error:
            failed += 1
            print(f'not ok {number} - {test.__name__}', flush=True)
            print(f'{error}\nrepeat: {sys.argv[0]} {lockctl} {test.__name__}', file=sys.stderr)
        finally:
            shell.end()
    server.shutdown()
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
