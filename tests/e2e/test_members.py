"""A cluster whose nodes change while it runs: who is out says the command that lets it in."""
from harness import ports, timing
from harness.cluster import Node

ADD = r'(NODE\.ADD \d+ \S+ [0-9a-f]{16})'


def votes(cluster, node):
    """Until the cluster needs it: it counts only as a voter."""
    timing.wait_for(f'node {node.number} to have everything', lambda: (node.status() or {}).get('revision')
                    == (cluster.wait_leader().status() or {}).get('revision'), 60 * timing.SLOW)


def let_in(cluster, node, pattern=ADD):
    command = node.process.wait_line(pattern, 30 * timing.SLOW)[1].split(' ')

    def added():
        with cluster.wait_leader().client(30) as client:
            return client.ask(*command) == 'OK'
    timing.wait_for(' '.join(command), added)
    return command


def test_a_node_that_lost_its_disk_is_let_in_again(cluster):
    three = cluster(3)
    for number in range(100):
        three.call('SET', f'k{number}', number)
    lost, other = three.followers()
    lost.kill9()
    lost.wipe()
    lost.start().wait_listening()
    lost.process.wait_line(r'identity outcast')
    with three.wait_leader().client(30) as client:
        refused = client.ask('NODE.ADD', lost.number, lost.peer_address, lost.status()['store-id'])
        assert refused.code == 'ERR', 'its number is taken by the store that is gone'
        timing.wait_for('that one to be out', lambda: client.ask('NODE.REMOVE', lost.number) == 'OK')
    let_in(three, lost)
    lost.process.wait_line(r'replica follower')
    votes(three, lost)
    status = timing.wait_for('its vote', lambda: (lambda s: s if s.get('role') == 'follower' else None)(lost.status() or {}))
    assert status['cluster-id'] == three.wait_leader().status()['cluster-id']
    for number in range(80):  # configurations take effect some slots later; writes bring them
        three.call('SET', 'more', number)
    other.kill9()
    assert three.call('SET', 'with', 'it', timeout=60) == 'OK'
    assert three.call('GET', 'k99') == '99'
    lost.kill9()  # what it is it is after a restart as well
    lost.start().wait_listening()
    assert three.call('GET', 'with', timeout=60) == 'it'


def test_a_fourth_node_joins_and_the_first_moves(cluster):
    three = cluster(3)
    for number in range(100):
        three.call('SET', f'k{number}', number)
    fourth = Node(three, 4)
    three.nodes.append(fourth)
    fourth.write_config()  # lists itself; the others know nothing of it
    fourth.start().wait_listening()
    let_in(three, fourth, r'lockd joining .*' + ADD)
    fourth.process.wait_line(r'replica follower', 60 * timing.SLOW)
    votes(three, fourth)
    for number in range(80):
        three.call('SET', 'more', number)
    moved = three.nodes[0]
    moved.kill9()
    moved.wipe()
    with three.wait_leader().client(30) as client:
        timing.wait_for('it to be out', lambda: client.ask('NODE.REMOVE', 1) == 'OK')
    moved.peer_address = ports.address()  # the configurations of the others name the old one
    moved.write_config()
    for number in range(80):
        three.call('SET', 'more', number)
    moved.start().wait_listening()
    let_in(three, moved, r'lockd joining .*' + ADD)
    moved.process.wait_line(r'replica follower', 60 * timing.SLOW)
    votes(three, moved)
    three.nodes[1].kill9()
    three.nodes[1].start().wait_listening()  # with its old configuration it finds the new place in its log
    votes(three, three.nodes[1])
    assert three.call('GET', 'k99') == '99'
    three.stop_all()
