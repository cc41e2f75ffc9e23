"""Who may include whom.  The arrows of the tree: main -> node/session -> io, core -> common; proxy -> client -> common."""
import re
import sys

import sources

# part of the tree -> what it may include with quotes, longest prefix first
ARROWS = {
    'common/io/': ['common/'],
    'common/': ['common/'],
    'lockd/core/': ['common/', 'lockd/core/'],
    'lockd/io/': ['common/', 'lockd/'],
    'client/': ['common/', 'client/'],
    'proxy/core/': ['common/', 'proxy/core/'],
    'proxy/io/': ['common/', 'proxy/', 'client/'],
    'conf/': ['common/', 'client/'],
    'tests/': ['common/', 'lockd/', 'client/', 'proxy/', 'tests/'],
}
PURE = ['common/', 'lockd/core/', 'proxy/core/']
PURE_SYSTEM = {  # no header here declares a clock, a socket, a file or a thread, but stdio (snprintf, must.c) and stdlib
    'assert.h', 'ctype.h', 'errno.h', 'inttypes.h', 'limits.h', 'math.h', 'regex.h', 'stdarg.h', 'stdbool.h', 'stddef.h',
    'stdint.h', 'stdio.h', 'stdlib.h', 'string.h', 'strings.h', 'endian.h', 'xxhash.h', 'uthash.h', 'openssl/sha.h',
    'utlist.h', 'sys/queue.h', 'lua.h', 'lauxlib.h', 'lualib.h', 'lua5.1/lua.h', 'lua5.1/lauxlib.h', 'lua5.1/lualib.h',
}


def part_of(path):
    return max((p for p in ARROWS if path.startswith(p)), key=len, default=None)


def main():
    errors = []
    for file in sources.files('.c', '.h', '.def'):
        path, text = sources.name(file), file.read_text()
        part = part_of(path)
        pure = part in PURE
        for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', text, re.M):
            kind, target = match.groups()
            where = f'{path}:{sources.line_of(text, match.start())}'
            if kind == '"':
                if '/' not in target and part == 'tests/' and (file.parent / target).is_file():
                    continue
                if '/' not in target:
                    errors.append(f'{where}: include "{target}" by its path from the root of the tree')
                elif not any(target.startswith(p) for p in ARROWS[part]):
                    errors.append(f'{where}: {part} may not include "{target}"')
                elif pure and part_of(target) not in PURE:
                    errors.append(f'{where}: {part} is pure, "{target}" is not')
            elif pure and target not in PURE_SYSTEM:
                errors.append(f'{where}: {part} is pure, <{target}> is not in the list of tests/tidy/includes.py')
    print('\n'.join(errors))
    return 1 if errors else 0


sys.exit(main())
