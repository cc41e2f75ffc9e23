"""Fixtures of the end-to-end tests.  Repeat one: HOLDFAST_BUILD=DIR /usr/bin/python3 -m pytest tests/e2e -k NAME"""
import os
import pathlib
import resource
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from harness import chat, cluster as clusters, process, relay as relays  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line('markers', 'long: takes minutes; only with tests/run --long')
    config.addinivalue_line('markers', 'alone: measures time; nothing else may run beside it')
    config.addinivalue_line('markers', 'hostile: bad input; runs once more against binaries with sanitizers')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20, hard))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure carries the end of every log of the test, and the command that repeats it."""
    report = (yield).get_result()
    if report.when == 'call' and report.failed:
        report.sections.append(('repeat', f'HOLDFAST_BUILD={os.environ.get("HOLDFAST_BUILD", "build-run/gcc")} '
                                f'/usr/bin/python3 -m pytest tests/e2e -k {item.name!r}'))
        folder = item.funcargs.get('tmp_path')
        if folder:
            for path in sorted(pathlib.Path(folder).rglob('*.log')):
                lines = path.read_text(errors='replace').splitlines()
                report.sections.append((f'{path} (last of {len(lines)} lines)', '\n'.join(lines[-12:])))


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    process.end_all()


@pytest.fixture
def cluster(tmp_path):
    """cluster(3, key=value) makes and starts a cluster; several are fine."""
    made = []

    def make(count=3, start=True, **keys):
        folder = tmp_path / f'cluster{len(made) + 1}'
        folder.mkdir()
        made.append(clusters.Cluster(folder, count, **keys))
        return made[-1].start() if start else made[-1]
    yield make
    for each in made:
        each.close()


@pytest.fixture
def three(cluster):
    return cluster(3)


@pytest.fixture
def one(cluster):
    return cluster(1)


@pytest.fixture
def relay():
    made = []

    def make(target):
        made.append(relays.Relay(target))
        return made[-1]
    yield make
    for each in made:
        each.close()


@pytest.fixture
def chatd(tmp_path):
    """chatd('a') starts one demo chat server."""
    return lambda name: chat.Chatd(tmp_path, name).start()


@pytest.fixture
def proxy(tmp_path):
    """proxy('p1', lockd addresses, backends, key=value ...) starts a lockproxy with one pool."""
    def make(name, lockd, backends, wait=True, **pool):
        listed = [(b.name, b.address) if isinstance(b, chat.Chatd) else b for b in backends]
        return chat.Proxy(tmp_path, name, lockd, listed, **pool).start(wait)
    return make
