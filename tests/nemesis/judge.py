"""Were the promises kept?  Reads what the clients of one epoch wrote down."""
import pathlib
import subprocess

# with clocks beyond the bound, only what the log orders is promised
LEASE_BOUND = ('get', 'getv', 'wor.get', 'check', 'holder')


def read_lines(paths):
    return [line for path in paths for line in pathlib.Path(path).read_text().splitlines()]


def linearizable(lincheck, folder, epoch, drift_ppm, loose):
    """(operations, unknown, [problem], [note]) of an epoch's histories."""
    paths = sorted(folder.glob(f'epoch{epoch}.*'))
    lines = read_lines(p for p in paths if p.suffix[1:].isdigit() or p.suffix == '.final')
    if loose:
        lines = [line for line in lines if not line.startswith(('lease ', '#')) and line.split()[3] not in LEASE_BOUND
                 and not line.split()[4].startswith('r')]
    whole = folder / f'history{epoch}'
    whole.write_text('\n'.join(lines) + '\n')
    done = subprocess.run(['nice', str(lincheck), '--drift-ppm', str(int(2 * drift_ppm)), str(whole)],
                          capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [''])[-1]
    numbers = [int(w) for w in last.replace(',', ' ').split() if w.isdigit()]
    problems, notes = [], []
    if done.returncode == 3:  # so many answers are unknown that the search does not end: told, for it proves nothing
        notes = [f'not judged whole: {last}']
    elif done.returncode == 1:
        problems = [line[9:] for line in done.stdout.splitlines() if line.startswith('not ok')] or ['not linearizable']
    elif done.returncode != 0:
        problems = [f'lincheck: exit status {done.returncode}: {(done.stderr or last).strip()}']
    return (numbers + [0, 0, 0])[0], (numbers + [0, 0, 0])[2], problems, notes


def holds(folder, epoch, loose):
    """No two believe at a time that they hold one lock; tokens grow in the order of the holds."""
    by_name, problems = {}, []
    for path in folder.glob(f'epoch{epoch}.*.holds'):
        for line in path.read_text().splitlines():
            name, token, begin, end = line.split()
            if int(end) <= int(begin):
                continue  # the grant came when the lease was no longer believed in
            by_name.setdefault(name, []).append((int(begin), int(end), int(token)))
    count = 0
    for name, list_of_holds in by_name.items():
        list_of_holds.sort()
        count += len(list_of_holds)
        one = list_of_holds[0]  # of those before, the one that ends last
        for two in list_of_holds[1:]:
            if one[2] == two[2]:  # the same grant, acquired again
                one = max(one, two, key=lambda h: h[1])
                continue
            if not loose and one[1] > two[0]:
                problems.append(f'{name} was believed held twice for {(one[1] - two[0]) / 1000:.1f} ms: tokens {one[2]}, {two[2]}')
            if one[2] > two[2] and one[1] <= two[0]:
                problems.append(f'the token of {name} went from {one[2]} to {two[2]}')
            one = max(one, two, key=lambda h: h[1])
    return count, problems


def abandoned(folder, epoch):
    """[(lease id, when it was last heard of us, ttl ms)] of the leases that nobody renews any more."""
    found = []
    for path in folder.glob(f'epoch{epoch}.*.leases'):
        for line in path.read_text().splitlines():
            found.append(tuple(int(word) for word in line.split()))
    return found
