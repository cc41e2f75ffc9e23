"""Calls and words that have no place in the tree: each line of the tables says why."""
import re
import sys

import sources

PRODUCT = {  # in every C file outside tests/
    r'strcpy|strcat|sprintf|vsprintf|gets|stpcpy': 'no bound on what it writes',
    r'strtok|rand|srand|random|drand48': 'hidden state; chance comes from a seed',
    r'atoi|atol|atof': 'no error for garbage; use a checked conversion',
    r'tmpnam|mktemp|tempnam': 'a race; use mkstemp or mkdtemp',
    r'alloca|system|popen': 'unbounded stack, or a shell',
    r'setjmp|longjmp': 'use return values',
    r'assert': 'must() stays on in release builds',
}
IN_CORE = {  # in common/*.c and every core/
    r'time|clock|clock_gettime|gettimeofday|localtime|gmtime|strftime': 'time comes in with each input',
    r'printf|fprintf|puts|perror|syslog|log_line|log_info|log_warn|log_error': 'core returns facts and never logs',
    r'getenv|open|read|write|socket|fopen|exit|abort': 'core touches nothing',
    r'malloc|calloc|realloc|free|strdup': 'memory comes from struct alloc',
    r'setlocale|strtod|localeconv': 'depends on the locale',
    r'pthread_\w+|fork': 'core is one thread',
}
CORE_EXCEPTIONS = {('common/must.c', 'fprintf'), ('common/must.c', 'abort')}  # must() ends the process
IN_TESTS = {r'sleep|usleep|nanosleep': 'sleeping is not synchronising: wait for an event or step virtual time'}
WORDS = {r'\bTODO\b|\bFIXME\b|\bXXX\b|\bHACK\b': 'finish it or leave it out', r'(?i)not implemented( yet)?': 'finish it'}


def is_core(path):
    return '/core/' in path or (path.startswith('common/') and not path.startswith('common/io/'))


def main():
    errors = []

    def check_calls(path, text, table):
        for pattern, why in table.items():
            for match in re.finditer(rf'(?<![\w.>])({pattern})\s*\(', text):
                if (path, match.group(1)) not in CORE_EXCEPTIONS:
                    errors.append(f'{path}:{sources.line_of(text, match.start())}: {match.group(1)}(): {why}')

    for file in sources.files('.c', '.h'):
        path, whole = sources.name(file), file.read_text()
        text = sources.c_code(whole)
        if path.startswith('tests/'):
            check_calls(path, text, IN_TESTS)
            continue
        check_calls(path, text, PRODUCT)
        if is_core(path):
            check_calls(path, text, IN_CORE)
    for file in sources.files('.py', folders=['tests']):
        path, text = sources.name(file), file.read_text()
        for match in re.finditer(r'\btime\.sleep\s*\(|\basyncio\.sleep\s*\(', text):
            errors.append(f'{path}:{sources.line_of(text, match.start())}: {match.group(0)}): ' + IN_TESTS[
                r'sleep|usleep|nanosleep'])
    for file in sources.files('.c', '.h', '.def', '.py', '.build', '.conf', '.md', '.sh'):
        path, text = sources.name(file), file.read_text()
        if path == 'tests/tidy/banned.py':
            continue
        for pattern, why in WORDS.items():
            for match in re.finditer(pattern, text):
                errors.append(f'{path}:{sources.line_of(text, match.start())}: {match.group(0)}: {why}')
    print('\n'.join(errors))
    return 1 if errors else 0


sys.exit(main())
