#!/usr/bin/env bash
# The complete comparison, in one go: writes target/bench/results.md (and prints it).
#
#   benches/run.sh [frontend] [memory] [engine] [cluster] [routing] [kvxfer]    default: all
#
# frontend: bare hyper, cuelight and Dynamo under the same load, unpaced and paced
# memory:   10,000 streaming requests, 10,000 waiting ones
# engine:   the CPU engine and llama.cpp on the same random-weight model
# cluster:  what the way between nodes costs, how fast losses and cancellations cross it
# routing:  how well requests are routed, in simulated time
# kvxfer:   KV blocks between two processes, next to a memory copy, a plain socket and raw UCX
#
# Environment: QUICK=1 only shows that everything works; DYNAMO=0 and LLAMA_CPP=0 leave a peer out
# (both are installed from PyPI on first use); MODEL (default target/bench/model) is where the
# engine benchmark's model is written.
set -euo pipefail
cd "$(dirname "$0")/.."

parts=${*:-frontend memory engine cluster routing kvxfer}
out=target/bench
model=${MODEL:-$out/model}
mkdir -p "$out"
quick=()
[ "${QUICK:-0}" = 0 ] || quick=(--quick)

# Builds the server as well.
FRONTEND=$(cargo bench --bench frontend --no-run 2>&1 | sed -n 's/.*(\(.*\))$/\1/p' | tail -1)
export FRONTEND

# With Dynamo beside the servers that the benchmark starts, or without.
frontend() {
    local pace=$1
    shift
    if [ "${DYNAMO:-1}" = 1 ]; then
        benches/peers/dynamo.sh "$pace" "${quick[@]}" "$@"
    else
        "$FRONTEND" --pace "$pace" "${quick[@]}" "$@"
    fi
}

main() {
    echo "# $(date -u +%Y-%m-%d), $(nproc) × $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)," \
        "$(git describe --always --dirty)"
    if [[ " $parts " == *" frontend "* ]]; then
        printf '\n## 256 streams, unpaced\n\n'
        frontend unpaced
        printf '\n## 256 streams, 43 tokens/s each, started together\n\n'
        frontend paced
        printf '\n## 256 streams, 43 tokens/s each, started over one second\n\n'
        "$FRONTEND" --pace paced --ramp-ms 1000 "${quick[@]}"
        printf '\n## 64 streams, unpaced and paced\n\n'
        "$FRONTEND" --streams 64 "${quick[@]}"
        printf '\n## 1,024 streams, unpaced and paced\n\n'
        "$FRONTEND" --streams 1024 --rounds 4 "${quick[@]}"
        if [ "${DYNAMO:-1}" = 1 ]; then
            printf '\n## Dynamo tuned, 256 streams\n\n'
            TUNED=1 benches/peers/dynamo.sh unpaced --servers none "${quick[@]}"
            TUNED=1 benches/peers/dynamo.sh paced --servers none "${quick[@]}"
        fi
    fi
    if [[ " $parts " == *" memory "* ]]; then
        printf '\n## Memory of open requests\n\n'
        "$FRONTEND" memory "${quick[@]}"
        # Its mocker takes minutes to start more than so many.
        [ "${DYNAMO:-1}" = 0 ] ||
            benches/peers/dynamo.sh memory --servers none --requests 2000 "${quick[@]}"
    fi
    if [[ " $parts " == *" engine "* ]]; then
        printf '\n## CPU engine\n\n'
        [ -e "$model/config.json" ] || cargo bench --bench engine -- --write-model "$model"
        cargo bench --bench engine -- --model "$model" "${quick[@]}"
        [ "${LLAMA_CPP:-1}" = 0 ] || benches/peers/llama_cpp.sh "$model"
    fi
    if [[ " $parts " == *" cluster "* ]]; then
        printf '\n## Cluster\n\n'
        cargo bench --bench cluster -- "${quick[@]}"
    fi
    if [[ " $parts " == *" routing "* ]]; then
        printf '\n## Routing\n\n'
        cargo bench --bench routing
    fi
    if [[ " $parts " == *" kvxfer "* ]]; then
        printf '\n## KV transfer\n\n'
        cargo bench --bench kvxfer -- "${quick[@]}"
    fi
}
main | tee "$out/results.md"
