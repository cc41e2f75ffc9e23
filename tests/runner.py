"""Builds Holdfast and runs its tests; tests/run is the way to call it (see there for the options).

Each stage is one build or one call of a test program.  A stage's whole output goes to build-run/logs; what is
printed is one line per stage, each failed test with the command that repeats it, and the total as the last line.
"""
import argparse
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / 'build-run'
LOGS = OUT / 'logs'
KINDS = ['build', 'unit', 'sim', 'scenario', 'fuzz', 'tidy', 'e2e', 'hostile', 'nemesis', 'bench', 'root']
SKIPPED = 77  # exit status of a test program that this machine cannot run
# The short form is judged by what is right, not by how fast: a timed test on a shared machine would fail by chance.
NEMESIS = {False: {'nemesis': ['--minutes', '3', '--seed', '1', '--patient']},
           True: {'nemesis': ['--minutes', '60'], 'nemesis kills': ['--kills', '200']}}
MESON_KINDS = ['unit', 'sim', 'scenario', 'fuzz', 'tidy']
BUILDS = {
    'gcc': ('gcc', ['-Dwerror=true']),
    'clang': ('clang', ['-Dwerror=true']),
    # no werror: gcc warns of what its own instrumentation adds
    'sanitize': ('gcc', ['-Dwerror=false', '-Db_sanitize=address,undefined']),
}
SANITIZER_ENV = {
    'ASAN_OPTIONS': 'abort_on_error=1:print_summary=1:detect_leaks=1',
    'UBSAN_OPTIONS': 'halt_on_error=1:abort_on_error=1:print_stacktrace=1',
}


class Total:
    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.start = time.monotonic()

    def line(self, text):
        print(f'[{time.monotonic() - self.start:6.0f} s] {text}', flush=True)

    def stage(self, name, passed, failed, seconds, note=''):
        self.passed += passed
        self.failed += failed
        self.line(f'{name}: {passed} passed, {failed} failed in {seconds:.0f} s{note}')

    def failure(self, name, repeat, log=None):
        print(f'         FAILED {name}\n           repeat: {repeat}', flush=True)
        if log:
            print(f'           output: {os.path.relpath(log, ROOT)}', flush=True)


class Running:
    """The child at work, so that Ctrl-C ends it and nothing else."""
    child = None


def call(command, log, env=None, timeout=None):
    """Run to the end with all output in `log`; returns the exit status, 124 after the timeout."""
    full = dict(os.environ, **(env or {}))
    with open(log, 'ab') as out:
        out.write(('$ ' + shlex.join(map(str, command)) + '\n').encode())
        out.flush()
        Running.child = subprocess.Popen([str(c) for c in command], cwd=ROOT, env=full, stdin=subprocess.DEVNULL,
                                         stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return Running.child.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(Running.child.pid, signal.SIGTERM)
            try:
                Running.child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(Running.child.pid, signal.SIGKILL)
                Running.child.wait()
            out.write(b'runner: timed out\n')
            return 124
        finally:
            Running.child = None


def show_tail(log, lines=15):
    for line in pathlib.Path(log).read_text(errors='replace').splitlines()[-lines:]:
        print('           | ' + line[:200])


def build(name, total):
    """Configure and build; a build directory that does not fit any more is made anew."""
    compiler, options = BUILDS[name]
    directory = OUT / name
    log = LOGS / f'build-{name}.log'
    begin = time.monotonic()
    env = {'CC': compiler}
    setup = ['meson', 'setup', directory, *options]
    if (directory / 'build.ninja').exists():
        status = call([*setup, '--reconfigure'], log, env)
    else:
        status = 1
    if status != 0:
        shutil.rmtree(directory, ignore_errors=True)
        status = call(setup, log, env)
    if status == 0:
        status = call(['ninja', '-k', '0', '-C', directory], log, env)
    total.stage(f'build {name}', int(status == 0), int(status != 0), time.monotonic() - begin)
    if status != 0:
        total.failure(f'build {name}', f'CC={compiler} meson setup {directory.relative_to(ROOT)} {shlex.join(options)}; '
                      f'ninja -C {directory.relative_to(ROOT)}', log)
        show_tail(log, 30)
    return status == 0


def read_junit(path):
    """[(class, name, failed, skipped)] of a JUnit file."""
    cases = []
    for case in ElementTree.parse(path).getroot().iter('testcase'):
        failed = case.find('failure') is not None or case.find('error') is not None
        cases.append((case.get('classname') or '', case.get('name') or '', failed, case.find('skipped') is not None))
    return cases


def meson_names(name, kind):
    """The tests of one kind (suite) in a build, by name."""
    listing = subprocess.run(['meson', 'test', '-C', OUT / name, '--list', '--suite', kind], capture_output=True,
                             text=True, cwd=ROOT)
    names = []
    for line in listing.stdout.splitlines():
        if ' / ' in line:
            names.append(line.split(' / ', 1)[1].strip())
    return names


def meson_tests(name, kind, options, total):
    names = [n for n in meson_names(name, kind) if not options.k or options.k.lower() in n.lower()]
    if options.list:
        for test in names:
            print(f'{kind} {name}: {test}')
        return
    if not names:
        return
    base = f'{name}-{kind}'
    log = LOGS / f'meson-{base}.log'
    begin = time.monotonic()
    env = dict(SANITIZER_ENV if name == 'sanitize' else {})
    if options.long:
        env['HOLDFAST_LONG'] = '1'
    junit = OUT / name / 'meson-logs' / f'{base}.junit.xml'
    junit.unlink(missing_ok=True)
    multiplier = (3 if name == 'sanitize' else 1) * (20 if options.long else 1)
    status = call(['meson', 'test', '-C', OUT / name, '--no-rebuild', '--num-processes', '2', '--suite', kind, '--logbase',
                   base, '-t', multiplier, '--print-errorlogs', *names], log, env)
    try:
        cases = read_junit(junit)
    except (OSError, ElementTree.ParseError) as error:
        cases = [('', f'meson test ({error})', True, False)]
    failed = [c for c in cases if c[2]]
    if status != 0 and not failed:
        failed = [('', f'meson test, exit status {status}', True, False)]
    passed = len([c for c in cases if not c[2] and not c[3]])
    total.stage(f'{kind} {name}', passed, len(failed), time.monotonic() - begin)
    for where, test, _, _ in failed:
        program = next((n for n in names if n in (where.split(' / ')[-1], test.split(' / ')[-1])), '*')
        repeat = f"meson test -C {OUT.relative_to(ROOT)}/{name} -v '{program}'"
        total.failure(test if program in test else f'{program}: {test}', repeat, log)


def pytest_stage(title, name, extra, options, total, timeout):
    log = LOGS / f'pytest-{title.replace(" ", "-")}.log'
    junit = LOGS / f'pytest-{title.replace(" ", "-")}.xml'
    if junit.exists():
        junit.unlink()
    env = dict(SANITIZER_ENV if name == 'sanitize' else {}, HOLDFAST_BUILD=str(OUT / name))
    if options.long:
        env['HOLDFAST_LONG'] = '1'
    command = ['/usr/bin/python3', '-m', 'pytest', '-p', 'no:cacheprovider', '-q', '-rfE', '--tb=short',
               f'--junitxml={junit}', *extra]
    if options.k:
        command += ['-k', options.k]
    if options.list:
        listing = subprocess.run([*command, '--collect-only'], cwd=ROOT, capture_output=True, text=True,
                                 env=dict(os.environ, **env))
        for line in listing.stdout.splitlines():
            if '::' in line:
                print(f'{title}: {line}')
        return
    begin = time.monotonic()
    status = call(command, log, env, timeout)
    if status == 5:  # nothing was selected by -k
        return
    try:
        cases = read_junit(junit)
    except (OSError, ElementTree.ParseError) as error:
        cases = [('', f'pytest ({error})', True, False)]
    failed = [c for c in cases if c[2]]
    if status not in (0, 1) and not failed:
        failed = [('', f'pytest, exit status {status}', True, False)]
    passed = len([c for c in cases if not c[2] and not c[3]])
    skipped = len([c for c in cases if c[3]])
    total.stage(title, passed, len(failed), time.monotonic() - begin, f' ({skipped} skipped)' if skipped else '')
    for where, test, _, _ in failed:
        repeat = f"HOLDFAST_BUILD={OUT.relative_to(ROOT)}/{name} /usr/bin/python3 -m pytest tests/e2e -k '{test}'"
        total.failure(f'{where} {test}', repeat, log)


def e2e(options, total):
    marks = '' if options.long else ' and not long'
    jobs = ['-n', str(options.jobs), '--dist', 'load'] if options.jobs > 1 else []
    pytest_stage('e2e', 'gcc', ['tests/e2e', '-m', f'not alone{marks}', *jobs], options, total,
                 7200 if options.long else 900)
    pytest_stage('e2e alone', 'gcc', ['tests/e2e', '-m', f'alone{marks}'], options, total, 7200 if options.long else 900)


def hostile(options, total):
    """Bad input again, against binaries that notice what does not crash."""
    marks = 'hostile' if options.long else 'hostile and not long'
    jobs = ['-n', str(options.jobs)] if options.jobs > 1 else []
    pytest_stage('hostile', 'sanitize', ['tests/e2e', '-m', marks, *jobs], options, total, 900)


def script_stage(kind, command, log, options, total, timeout):
    """A test program that prints one `ok NAME` or `not ok NAME` line per check."""
    if options.list:
        print(f'{kind}: {command[0]}')
        return
    begin = time.monotonic()
    log = LOGS / log
    status = call(command, log, {}, timeout)
    lines = log.read_text(errors='replace').splitlines()
    if status == SKIPPED:
        total.line(f'{kind}: skipped: {lines[-1] if lines else "it does not say why"}')
        return
    passed = len([l for l in lines if l.startswith('ok ')])
    bad = [l[7:] for l in lines if l.startswith('not ok ')]
    if status != 0 and not bad:
        bad = [f'exit status {status}']
    total.stage(kind, passed, len(bad), time.monotonic() - begin)
    for name in bad:
        total.failure(name, shlex.join(map(str, command)), log)


def nemesis(options, total):
    """Real nodes in network namespaces while everything around them breaks."""
    command = [ROOT / 'tests/nemesis/run', '--build', OUT / 'gcc']
    for title, extra in NEMESIS[options.long].items():
        if not options.k or options.k.lower() in title:
            script_stage(title, [*command, *extra], f'{title.replace(" ", "-")}.log', options, total, 7200)


def more_seeds(options, total):
    """The simulator beyond the seeds of the quick run, and the hunt for planted bugs that shows that it bites."""
    sim = OUT / 'gcc' / 'tests' / 'sim' / 'sim'
    for name, command in (('sim 2001..100000', [sim, '--seeds', '2001..100000', '--jobs', '2']),
                          ('sim mutants', [ROOT / 'tests' / 'sim' / 'mutants' / 'run'])):
        if options.list or (options.k and options.k.lower() not in name):
            if options.list:
                print(name)
            continue
        begin = time.monotonic()
        log = LOGS / f'{name.replace(" ", "-")}.log'
        status = call(command, log, {}, 6 * 3600)
        total.stage(name, int(status == 0), int(status != 0), time.monotonic() - begin)
        if status != 0:
            total.failure(name, shlex.join(map(str, command)), log)
            show_tail(log)


def stop(_signal, _frame):
    if Running.child is not None:
        os.killpg(Running.child.pid, signal.SIGTERM)
    sys.exit(130)


def main():
    parser = argparse.ArgumentParser(prog='tests/run')
    parser.add_argument('--only', action='append', choices=KINDS)
    parser.add_argument('-k', metavar='EXPR')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--long', action='store_true')
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--no-install', action='store_true')
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for inherited in (signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):  # nohup and `&` ignore some; tests must not see that
        signal.signal(inherited, signal.SIG_DFL)
    kinds = options.only or [k for k in KINDS if k not in ('bench', 'root') or options.long]
    os.chdir(ROOT)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    total = Total()
    needed = set()
    if any(k in kinds for k in MESON_KINDS + ['e2e', 'build', 'nemesis', 'bench']):
        needed.add('gcc')
    if 'build' in kinds or (not options.only and 'unit' in kinds):
        needed |= {'clang', 'sanitize'}
    if 'hostile' in kinds:
        needed.add('sanitize')
    built = {name for name in BUILDS if name in needed and build(name, total)}
    if 'gcc' in built:
        for kind in MESON_KINDS:
            if kind in kinds:
                meson_tests('gcc', kind, options, total)
        if 'sim' in kinds and options.long:
            more_seeds(options, total)
    if 'clang' in built and 'unit' in kinds:
        meson_tests('clang', 'unit', options, total)
    if 'sanitize' in built:
        for kind in ('unit', 'fuzz'):
            if kind in kinds:
                meson_tests('sanitize', kind, options, total)
    if 'gcc' in built and 'e2e' in kinds:
        e2e(options, total)
    if 'sanitize' in built and 'hostile' in kinds:
        hostile(options, total)
    if 'gcc' in built and 'nemesis' in kinds:
        nemesis(options, total)
    if 'gcc' in built and 'bench' in kinds:
        script_stage('bench', [ROOT / 'tests/bench/run', OUT / 'gcc'], 'bench.log', options, total, 1800)
    if 'root' in kinds:
        script_stage('root', [ROOT / 'tests/long/fresh-root'], 'root.log', options, total, 7200)
    if options.list:
        return 0
    total.line(f'logs: {LOGS.relative_to(ROOT)}')
    print(f'{total.passed} passed, {total.failed} failed')
    return 0 if total.failed == 0 and total.passed > 0 else 1


sys.exit(main())
