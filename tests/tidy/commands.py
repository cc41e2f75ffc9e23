"""README.md has every command of commands.def, with its arguments and its summary.

usage: commands.py [--write]     --write puts the table into README.md
"""
import re
import sys

import sources

BEGIN, END = '<!-- commands: written by tests/tidy/commands.py --write -->', '<!-- end of commands -->'
ROW = re.compile(r'^COMMAND\(\w+, "([^"]+)", -?\d+, (\w+), [^"]*"[^"]*", "([^"]*)", "([^"]*)"\)', re.M)


def table():
    rows = ['| command | what it does |', '|---|---|']
    for name, kind, arguments, summary in ROW.findall((sources.ROOT / 'lockd/core/commands.def').read_text()):
        if kind != 'INTERNAL':
            call = f'{name} {arguments}'.strip().replace('|', '\\|')
            rows.append(f'| `{call}` | {summary} |')
    return '\n'.join(rows)


def main():
    path = sources.ROOT / 'README.md'
    text = path.read_text()
    if BEGIN not in text or END not in text:
        print(f'README.md lacks the lines {BEGIN} and {END}')
        return 1
    head, rest = text.split(BEGIN, 1)
    old, tail = rest.split(END, 1)
    if '--write' in sys.argv:
        path.write_text(f'{head}{BEGIN}\n{table()}\n{END}{tail}')
        return 0
    if old.strip() != table():
        print('the table of commands in README.md is not that of lockd/core/commands.def; run: '
              '/usr/bin/python3 tests/tidy/commands.py --write')
        return 1
    return 0


sys.exit(main())
