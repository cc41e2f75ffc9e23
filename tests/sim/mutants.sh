#!/bin/sh
# Builds the simulator with each planted bug of mutants.txt and hunts it: the proof that "0 failures" means something.
#   tests/sim/mutants.sh [number ...]      CC and CFLAGS are honoured; exit 0 when every bug was found
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/clean/lockd" "$work/clean/tests"
cp -r "$root/common" "$work/clean/" && cp -r "$root/lockd/core" "$work/clean/lockd/" &&
    cp -r "$root/tests/sim" "$work/clean/tests/" || exit 2

build() { # directory, extra flag
    # shellcheck disable=SC2046,SC2086
    (cd "$1" && ${CC:-cc} -std=gnu11 -D_GNU_SOURCE -O2 -g -I. '-DHOLDFAST_VERSION="mutant"' ${CFLAGS:-} $2 \
        $(pkg-config --cflags lua5.1 libxxhash libcrypto) tests/sim/*.c lockd/core/*.c common/*.c -o sim \
        $(pkg-config --libs lua5.1 libxxhash libcrypto) -lm) 2>"$work/log" || { cat "$work/log"; return 1; }
}

grep -v '^#' "$root/tests/sim/mutants.txt" >"$work/list"
while IFS='	' read -r number object file edit what; do
    case " ${*:-$number} " in *" $number "*) ;; *) continue ;; esac
    rm -rf "$work/tree" && cp -r "$work/clean" "$work/tree" || exit 2
    flag=
    if [ "$file" = - ]; then
        flag="-DPAXOS_BUG=$number"
    else
        sed -E -i "$edit" "$work/tree/$file"
        if cmp -s "$work/clean/$file" "$work/tree/$file"; then
            echo "not ok - bug $number ($what): cannot be planted, $file has changed"
            echo "$number" >>"$work/survivors"
            continue
        fi
    fi
    build "$work/tree" "$flag" || exit 2
    found=$("$work/tree/sim" --object "$object" --stop --seeds 1..1000 2>/dev/null </dev/null | grep '^not ok' | head -n 1)
    echo "$number" >>"$work/hunted"
    if [ -n "$found" ]; then
        echo "ok - bug $number ($what): ${found#not ok - }"
    else
        echo "not ok - bug $number ($what): survived 1000 seeds"
        echo "$number" >>"$work/survivors"
    fi
done <"$work/list"
hunted=$(cat "$work/hunted" 2>/dev/null | wc -l)
survivors=$(cat "$work/survivors" 2>/dev/null | wc -l)
echo "mutants: $hunted hunted, $survivors survived"
[ "$hunted" -gt 0 ] && [ "$survivors" -eq 0 ]
