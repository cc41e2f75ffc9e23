"""A program's example configuration names every key that the program knows, and no other.

usage: config_keys.py PROGRAM CONFIG-FILE [KEY-ONLY-IN-THE-FILE ...]

Asks `PROGRAM --help` for `--key` options and reads `key =` lines, active or commented out, from the file.
"""
import re
import subprocess
import sys

NOT_KEYS = {'help', 'version', 'check', 'config'}  # options that are not configuration


def main():
    program, config, only_in_file = sys.argv[1], sys.argv[2], set(sys.argv[3:])
    shown = subprocess.run([program, '--help'], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r'^\s*--([a-z][a-z0-9-]*)', shown, re.M)) - NOT_KEYS
    with open(config) as file:
        documented = set(re.findall(r'^[#\s]*([a-z][a-z0-9-]*)\s*\+?=', file.read(), re.M))
    errors = [f'{config} does not document {key}' for key in sorted(options - documented)]
    errors += [f'{config} documents {key}, which {program} does not know'
               for key in sorted(documented - options - only_in_file)]
    print('\n'.join(errors))
    return 1 if errors else 0


sys.exit(main())
