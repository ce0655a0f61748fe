#!/bin/sh
# Runs the whole comparison and prints the rows of README.md's tables; takes about ten minutes.
set -eu
cd "$(dirname "$0")"
cargo build --release
bench="${CARGO_TARGET_DIR:-target}/release/kv-index"
echo '# time'
for shape in unique-32 unique-128 unique-4096 32+96 everywhere-32 everywhere-128 everywhere-4096; do
    for ranks in 8 256; do
        "$bench" time "$shape" "$ranks" 1000000 5 cuelight radix-tree compressed
    done
done
"$bench" time 32+96 8 1000000 5 positional
for shape in unique-128 32+96 everywhere-128; do
    for ranks in 8 256; do
        "$bench" time "$shape" "$ranks" 10000000 1 cuelight radix-tree compressed
    done
done
echo '# memory'
for shape in unique-32 unique-128 unique-4096 32+96 everywhere-32 everywhere-128 everywhere-4096; do
    for ranks in 8 256; do
        "$bench" memory "$shape" "$ranks" 1000000 1
    done
done
