"""A core library calls nothing but what its allow-list names, and keeps no state of its own.

usage: purity.py ALLOW-LIST LIBRARY [OTHER-PURE-LIBRARY ...]

Reads the symbol tables of the static library.  What it leaves undefined must be defined in one of the other pure
libraries (which have a check of their own) or stand in the allow-list, one name a line, `#` begins a comment.  A
name that is allowed but not used is an error too, so that the list stays short, but for those a compiler adds or
takes away as it likes.  Writable data is a global: refused.
"""
import subprocess
import sys

COMPILERS_CHOICE = {'memcpy', 'memset', 'memmove', 'memcmp', 'strlen', 'strcmp', 'bcmp', '__stack_chk_fail', '__popcountdi2'}


def tool(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(library):
    """(defined names, {undefined name: an object that wants it}) of a static library."""
    defined, wanted, member = set(), {}, library
    for line in tool('nm', '-P', library).splitlines():
        words = line.split()
        if line.endswith(':') and len(words) == 1:
            member = line[:-1].split('[')[-1].rstrip(']')
        elif len(words) >= 2 and words[1] in 'Uwv':
            wanted.setdefault(words[0], member)
        elif len(words) >= 2 and words[1].isupper():
            defined.add(words[0])
    return defined, {name: where for name, where in wanted.items() if name not in defined}


def writable_objects(library):
    """Names of data a program could change at run time.  Tables of pointers that the loader fills are not."""
    found = []
    for line in tool('objdump', '-t', library).splitlines():
        words = line.split()
        for section in ('.data', '.bss', '.tdata', '.tbss', '*COM*'):
            for index, word in enumerate(words):
                if (word == section or word.startswith(section + '.')) and not word.startswith('.data.rel.ro'):
                    name = words[-1]
                    if name != word and int(words[index + 1], 16) > 0:
                        found.append(name)
    return found


def main():
    allow_path, library, others = sys.argv[1], sys.argv[2], sys.argv[3:]
    with open(allow_path) as file:
        allowed = {line.split('#')[0].strip() for line in file} - {''}
    elsewhere = set()
    for other in others:
        elsewhere |= symbols(other)[0]
    _, wanted = symbols(library)
    wanted = {name: where for name, where in wanted.items()
              if name not in elsewhere and name != '_GLOBAL_OFFSET_TABLE_'}
    errors = []
    for name in sorted(set(wanted) - allowed - COMPILERS_CHOICE):
        errors.append(f'{wanted[name]} calls {name}, which is not in {allow_path}')
    for name in sorted(allowed - set(wanted) - COMPILERS_CHOICE):
        errors.append(f'{allow_path} allows {name}, which nothing uses: take it out')
    for name in writable_objects(library):
        errors.append(f'{library} has the writable global {name}')
    for error in errors:
        print(error)
    return 1 if errors else 0


sys.exit(main())
