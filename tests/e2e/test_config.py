"""What is wrong with a configuration, an address or a directory is said in one line that names the offender."""
import os
import shutil
import socket

import pytest

from harness import ports, timing
from harness.process import Process, binary, run

pytestmark = pytest.mark.hostile


def fails(argv, *names, status=(1, 2), env=None):
    """It ends by itself with an error status and names every one of `names` on one line of standard error."""
    code, out, err = run(argv, env=env)
    assert code in status, (argv, code, out, err)
    lines = [line for line in err.splitlines() if all(name in line for name in names)]
    assert lines, f'no line of standard error names {names}:\n{err}'
    assert 'Assertion' not in err and 'must' not in err.split()[:1] and len(err.splitlines()) <= 6, err
    return lines[0]


def lockd(folder, text, *options):
    path = folder / 'lockd.conf'
    path.write_text(text)
    return [binary('lockd'), '--config', path, '--listen', '127.0.0.1:0', *options]


def test_a_misspelt_key(tmp_path):
    line = fails(lockd(tmp_path, 'data-dir = "x"\nheartbeet-ms = 50\n'), 'heartbeet-ms', '2')
    assert 'lockd.conf' in line
    fails([binary('lockd'), '--heartbeet-ms', '50'], 'heartbeet-ms')


def test_values_that_are_wrong(tmp_path):
    for text, name in (('heartbeat-ms = 0\n', 'heartbeat-ms'), ('heartbeat-ms = abc\n', 'heartbeat-ms'), ('clients-max = -1\n', 'clients-max'),
                       ('log-level = "loud"\n', 'log-level'), ('key-bytes-max = 99999999\n', 'key-bytes-max'),
                       ('listen = "nonsense"\n', 'nonsense'), ('listen = "127.0.0.1:99999"\n', '127.0.0.1:99999'),
                       ('heartbeat-ms = 99999999999999999999\n', 'heartbeat-ms')):
        path = tmp_path / 'lockd.conf'
        path.write_text(text)
        fails([binary('lockd'), '--config', path, '--data-dir', tmp_path / 'data'], name)
    path.write_text('listen = "127.0.0.1:0"\n')
    fails([binary('lockd'), '--config', path, '--heartbeat-ms', 'x'], 'heartbeat-ms')
    fails([binary('lockd'), '--config', tmp_path / 'none.conf'], 'none.conf')
    fails([binary('lockd'), 'surplus'], 'surplus')
    fails([binary('lockd'), '--config'], 'config')


def test_a_file_that_is_not_a_configuration(tmp_path):
    for text in ('{{{{', 'nodes = {"a", \n', 'x' * 100000, '\0\0\0', 'listen = '):
        path = tmp_path / 'lockd.conf'
        path.write_text(text)
        fails([binary('lockd'), '--config', path, '--data-dir', tmp_path / 'data'], 'lockd.conf')


def test_addresses_of_nodes_that_are_wrong(tmp_path):
    free = [ports.address() for _ in range(3)]

    def nodes(*addresses, node=1):
        return 'node = %d\nnodes = {%s}\ndata-dir = "%s"\n' % (node, ', '.join(f'"{a}"' for a in addresses), tmp_path / 'data')
    fails(lockd(tmp_path, nodes(free[0], free[1], free[1])), free[1])
    fails(lockd(tmp_path, nodes(*free, node=4)), 'node', '3')
    fails(lockd(tmp_path, nodes(*free, node=0)), 'node')
    fails(lockd(tmp_path, nodes('127.0.0.1', free[1], free[2])), '127.0.0.1')
    fails(lockd(tmp_path, nodes('203.0.113.1:7411', free[1], free[2])), '203.0.113.1:7411')


def test_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        address = '127.0.0.1:%d' % taken.getsockname()[1]
        fails([binary('lockd'), '--listen', address, '--data-dir', tmp_path / 'data'], address)


def test_a_directory_that_cannot_be_written(tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    fails([binary('lockd'), '--listen', '127.0.0.1:0', '--data-dir', file / 'below'], str(file / 'below'))
    fails([binary('lockd'), '--listen', '127.0.0.1:0', '--data-dir', file], str(file))
    fails([binary('lockd'), '--listen', '127.0.0.1:0', '--data-dir', '/proc/nothing'], '/proc/nothing')


def test_a_data_directory_that_is_in_use(tmp_path):
    data = tmp_path / 'data'
    first = Process('first', [binary('lockd'), '--listen', '127.0.0.1:0', '--data-dir', data], tmp_path)
    first.wait_line('lockd listening')
    fails([binary('lockd'), '--listen', '127.0.0.1:0', '--data-dir', data], str(data))
    assert first.running()


def test_a_data_directory_of_another_node_or_cluster_size(cluster):
    three = cluster(3)
    three.call('SET', 'a', '1')
    one, two = three.nodes[0], three.nodes[1]
    one.kill9()
    two.kill9()
    shutil.move(one.data, one.data + '.aside')
    shutil.copytree(two.data, one.data)
    fails([binary('lockd'), '--config', one.config], one.data)
    shutil.rmtree(one.data)
    shutil.move(one.data + '.aside', one.data)
    fails([binary('lockd'), '--data-dir', one.data, '--listen', '127.0.0.1:0'], one.data)
    one.start().wait_listening()
    two.start().wait_listening()
    assert three.call('GET', 'a') == '1', 'none of that has harmed the data'


def test_a_data_directory_of_another_cluster(cluster):
    """Node 1 of cluster A finds itself configured into cluster B: it says so and does not vote there."""
    a, b = cluster(3), cluster(3)
    a.call('SET', 'x', 'of a')
    b.call('SET', 'x', 'of b')
    a.stop_all()
    node = b.nodes[0]
    node.kill9()
    shutil.move(node.data, node.data + '.aside')
    shutil.copytree(a.nodes[0].data, node.data)
    node.start()
    node.process.wait_line(r'identity outcast|another cluster|of a different cluster')
    assert b.call('GET', 'x') == 'of b'
    assert (node.status() or {'role': 'ended'})['role'] != 'leader'
    if node.process.running():
        node.kill9()
    shutil.rmtree(node.data)
    shutil.move(node.data + '.aside', node.data)
    node.start().wait_listening()
    timing.wait_for('it to be itself again', lambda: (node.status() or {}).get('role') in ('follower', 'leader'))
    assert b.call('GET', 'x') == 'of b'


def test_two_nodes_with_one_id(cluster):
    """The second cannot even start where the first runs; on another address it is refused by the others."""
    three = cluster(3)
    one, two = three.nodes[0], three.nodes[1]
    two.kill9()
    two.write_config(node=1)
    with open(two.config) as file:
        text = file.read().replace(f'node = {two.number}\n', '')
    with open(two.config, 'w') as file:
        file.write(text)
    two.process = None
    fails([binary('lockd'), '--config', two.config], 'node')
    assert three.call('SET', 'a', '1') == 'OK'
    assert one.process.running()


def test_damage_in_the_data_is_refused(cluster):
    """Bytes of the log are changed on disk: the node does not start as if nothing were, and says which directory."""
    single = cluster(1)
    client = single.client()
    for number in range(300):
        client('SET', f'key{number}', 'some value that can be found on the disk')
    node = single.nodes[0]
    node.term()
    path = os.path.join(node.data, 'log', 'data.mdb')
    with open(path, 'r+b') as file:
        data = file.read()
        at = data.find(b'some value that can be found')
        assert at > 0
        while at > 0:  # pages that are free again hold old copies: all of them, so that the one in use is among them
            file.seek(at + 5)
            file.write(b'X')
            at = data.find(b'some value that can be found', at + 1)
    # A damaged environment is not touched again, not even to free what it holds: that is no leak.
    fails([binary('lockd'), '--config', node.config], node.data, env={'ASAN_OPTIONS': 'detect_leaks=0'})


def test_check_says_that_a_configuration_is_good_without_starting(tmp_path):
    path = tmp_path / 'lockd.conf'
    path.write_text('heartbeat-ms = 50\n')
    assert run([binary('lockd'), '--config', path, '--check'], cwd=tmp_path)[0] == 0
    path.write_text('heartbeat-ms = fifty\n')
    fails([binary('lockd'), '--config', path, '--check'], 'heartbeat-ms')
    assert not (tmp_path / 'lockd-data').exists()


def proxy_config(folder, text):
    path = folder / 'proxy.conf'
    path.write_text(text)
    return [binary('lockproxy'), '--config', path]


POOL = 'lockd = {"127.0.0.1:1"}\npool chat {\n  listen = "127.0.0.1:0"\n%s\n  backend a { address = "127.0.0.1:9" }\n}\n'


def test_a_proxy_configuration_that_is_wrong(tmp_path):
    for text, names in ((POOL % '  sunset = 2', ('sunset', '4')), (POOL % '  key = {"line ["}', ('line [',)),
                        (POOL % '  key = {"lime x"}', ('lime',)), (POOL % '  class = "sticki"', ('sticki',)),
                        (POOL % '  subset = 0', ('subset',)), (POOL % '  backend a { address = "127.0.0.1:8" }', ('a',)),
                        (POOL.replace('127.0.0.1:9', 'nonsense') % '', ('nonsense',)),
                        (POOL.replace('127.0.0.1:0', '127.0.0.1:77777') % '', ('127.0.0.1:77777',)),
                        ('lockd = {"127.0.0.1:1"}\n', ('pool',)), ('lockd = {"nonsense"}\n' + POOL[26:] % '', ('nonsense',)),
                        ('frob = 1\n', ('frob',)), ('pool {', ('proxy.conf',))):
        fails(proxy_config(tmp_path, text), *names)
    fails([binary('lockproxy'), '--config', tmp_path / 'none.conf'], 'none.conf')
    fails([binary('lockproxy')], 'config')


def test_a_proxy_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        address = '127.0.0.1:%d' % taken.getsockname()[1]
        fails(proxy_config(tmp_path, (POOL % '').replace('127.0.0.1:0', address)), address)


def test_the_example_configurations_are_good():
    conf = os.path.join(os.path.dirname(__file__), '..', '..', 'conf')
    for program, file in (('lockd', 'lockd.conf'), ('lockproxy', 'proxy.conf')):
        status, _, err = run([binary(program), '--config', os.path.join(conf, file), '--check'])
        assert status == 0, err
