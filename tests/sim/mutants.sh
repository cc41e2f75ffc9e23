#!/bin/sh
# Builds the simulator with each planted bug and hunts it: the proof that "0 failures" means something.
#   tests/sim/mutants.sh [number ...]      CC and CFLAGS are honoured; exit 0 when every bug was found
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root" || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
sources="tests/sim/*.c lockd/core/*.c common/must.c common/alloc.c common/slice.c common/buf.c common/wire.c"
flags="-std=gnu11 -D_GNU_SOURCE -O2 -g -I. -DHOLDFAST_VERSION=\"mutant\" ${CFLAGS:-} $(pkg-config --cflags lua5.1 libxxhash libcrypto)"
libs="$(pkg-config --libs lua5.1 libxxhash libcrypto) -lm"
survivors=0 hunted=0
grep -v '^#' tests/sim/mutants.txt | while read -r number object what; do
    case " ${*:-$number} " in *" $number "*) ;; *) continue ;; esac
    # shellcheck disable=SC2086
    if ! ${CC:-cc} $flags "-DPAXOS_BUG=$number" $sources $libs -o "$work/sim" 2>"$work/log"; then
        cat "$work/log"
        exit 2
    fi
    found=$("$work/sim" --object "$object" --stop --seeds 1..1000 2>/dev/null | grep '^not ok' | head -n 1)
    if [ -n "$found" ]; then
        echo "ok - bug $number ($what): ${found#not ok - }"
    else
        echo "not ok - bug $number ($what): survived 1000 seeds"
        echo "$number" >>"$work/survivors"
    fi
    hunted=$((hunted + 1))
    echo "$hunted" >"$work/hunted"
done
hunted=$(cat "$work/hunted" 2>/dev/null || echo 0)
survivors=$(wc -l <"$work/survivors" 2>/dev/null || echo 0)
echo "mutants: $hunted hunted, $survivors survived"
[ "$hunted" -gt 0 ] && [ "$survivors" -eq 0 ]
