#!/bin/sh
# Runs the comparison and prints the rows of README.md's tables: ./run.sh [1m] [10m] [memory]
#
# 1m:     all chains, 8 and 256 ranks, all structures, medians of 3 rounds: about 4 minutes on an idle machine
# 10m:    the same with ten times the blocks, one round: about 8 minutes, 4 GiB
# memory: bytes for each pair of a rank and a block at 1 M: about 2 minutes
# Without arguments: 1m and 10m. What this machine has no memory for is skipped, and said so.
# QUICK=1 only shows that everything works.
set -eu
cd "$(dirname "$0")"
cargo build --release
bench="${CARGO_TARGET_DIR:-target}/release/kv-index"
shapes='unique-32 unique-128 unique-4096 32+96 everywhere-32 everywhere-128 everywhere-4096'
million=1000000
rounds=3
[ "${QUICK:-0}" = 0 ] || { million=100000; rounds=1; }

rows() {
    for shape in $shapes; do
        for ranks in 8 256; do
            "$bench" "$1" "$shape" "$ranks" "$2" "$3"
        done
    done
}

for part in ${*:-1m 10m}; do
    echo "# $part"
    case $part in
    1m) rows time $million $rounds ;;
    10m) rows time $((10 * million)) 1 ;;
    memory) rows memory $million 1 ;;
    *) echo "usage: ./run.sh [1m] [10m] [memory]" >&2; exit 64 ;;
    esac
done
date -u +'# done at %H:%M:%S' >&2
