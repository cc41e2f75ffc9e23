"""clang-format decides the layout of every C file."""
import subprocess
import sys

import sources

paths = [sources.name(p) for p in sources.files('.c', '.h')]
bad = []
for path in paths:
    formatted = subprocess.run(['clang-format', path], cwd=sources.ROOT, capture_output=True, text=True, check=True).stdout
    if formatted != (sources.ROOT / path).read_text():
        bad.append(path)
if bad:
    print('not formatted; run: clang-format -i ' + ' '.join(bad))
sys.exit(1 if bad else 0)
