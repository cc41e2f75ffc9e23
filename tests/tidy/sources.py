"""What the tidy checks share: the source files of the tree, and C text without comments and strings."""
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDERS = ['common', 'lockd', 'client', 'proxy', 'conf', 'tests']


def files(*suffixes, folders=FOLDERS):
    """Every file below `folders` with one of the suffixes, by path relative to the tree."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob('*')):
            if path.suffix in suffixes and path.is_file() and 'build' not in path.relative_to(ROOT).parts[0]:
                found.append(path)
    return found


def name(path):
    return str(path.relative_to(ROOT))


TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)


def c_code(text):
    """The text with comments and the insides of strings blanked; line numbers stay."""
    def blank(match):
        found = match.group(0)
        if found.startswith('/'):
            return re.sub(r'[^\n]', ' ', found)
        return found[0] + ' ' * (len(found) - 2) + found[-1]
    return TOKEN.sub(blank, text)


def line_of(text, offset):
    return text.count('\n', 0, offset) + 1
