"""lockd alone, without any configuration: a working service whose acknowledged writes survive kill -9."""
import os
import signal

from harness import ports
from harness.process import Process, binary, run
from harness.resp import Client


def start_alone(folder, *options):
    address = ports.address()
    node = Process('lockd', [binary('lockd'), '--listen', address, *options], folder, cwd=str(folder))
    node.wait_line(r'lockd listening')
    return node, address


def cli(address, *words):
    host, port = address.rsplit(':', 1)
    status, out, err = run(['redis-cli', '-h', host, '-p', port, *words])
    assert status == 0, err
    return out.strip()


def test_redis_cli_sets_and_gets_and_kill_9_loses_nothing(tmp_path):
    node, address = start_alone(tmp_path)
    assert cli(address, 'PING') == 'PONG'
    assert cli(address, 'SET', 'a', '1') == 'OK'
    assert cli(address, 'GET', 'a') == '1'
    with Client(address) as client:
        for number in range(200):
            assert client('SET', f'k{number}', f'v{number}') == 'OK'
    node.kill9()
    assert os.path.isdir(tmp_path / 'lockd-data'), 'the data belongs in ./lockd-data unless told otherwise'
    node, address = start_alone(tmp_path)
    with Client(address) as client:
        assert client('GET', 'a') == '1'
        assert client.pipeline([('GET', f'k{n}') for n in range(200)]) == [f'v{n}' for n in range(200)]
        assert client('DBSIZE') == 201


def test_default_address_is_in_the_help():
    status, out, _ = run([binary('lockd'), '--help'])
    assert status == 0
    assert '127.0.0.1:7400' in out and 'lockd-data' in out


def test_version():
    status, out, _ = run([binary('lockd'), '--version'])
    assert status == 0 and '0.1' in out


def test_sigterm_stops_cleanly_and_sigint_too(tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT):
        node, address = start_alone(tmp_path)
        with Client(address) as client:
            assert client('INCR', 'stops') >= 1
        node.signal(number)
        assert node.wait() == 0
        assert node.matches(r'lockd stopped')
    node, address = start_alone(tmp_path)
    with Client(address) as client:
        assert client('GET', 'stops') == '2'


def test_a_write_that_is_acknowledged_while_it_is_killed_is_there(tmp_path):
    """Kill it in the middle of a pipeline, several times: what was answered is stored, in order."""
    acknowledged = 0
    for _ in range(5):
        node, address = start_alone(tmp_path)
        with Client(address) as client:
            stored = int(client('GET', 'n') or 0)
            assert stored >= acknowledged, f'{acknowledged} was acknowledged, {stored} is stored'
            for number in range(stored + 1, stored + 3001):
                client.send('SET', 'n', number)
            for number in range(stored + 1, stored + 501):
                assert client.receive() == 'OK'
            node.signal(signal.SIGKILL)
            acknowledged = stored + 500
            try:
                while client.receive() == 'OK':
                    acknowledged += 1
            except (ConnectionError, OSError):
                pass
        node.wait()
    node, address = start_alone(tmp_path)
    with Client(address) as client:
        assert int(client('GET', 'n')) >= acknowledged
