#!/usr/bin/env bash
# Measures NVIDIA Dynamo 1.6.1 (front end + its mocker) with the front-end benchmark's load.
#
#   benches/peers/dynamo.sh unpaced|paced|memory [BENCHMARK OPTIONS…]
#
# The servers that the benchmark starts itself run beside it, for one table: --servers none leaves
# them out.
#
# Environment: PEERS (default target/peers) holds the virtual environment; FRONTEND is the benchmark
# program (default: built by cargo); TUNED=1 turns on what makes Dynamo's front end fastest here
# (a faster tokenizer, jemalloc from Debian's libjemalloc2, errors-only logging).
# Everything listens on the loopback address; what was started is ended by its process id.
set -euo pipefail
cd "$(dirname "$0")/../.."

pace=${1:?usage: dynamo.sh unpaced|paced|memory [BENCHMARK OPTIONS]}
shift
peers=${PEERS:-target/peers}
venv=$peers/dynamo/venv
state=$peers/dynamo/run
python=$venv/bin/python

install() {
    python3 -m venv "$venv"
    # Without its dependencies: one of them, aisimulate, is not on PyPI as more than a pointer to
    # another registry, and neither the front end nor the mocker uses it.
    "$venv/bin/pip" install --quiet --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
    "$venv/bin/pip" install --quiet 'aiohttp>=3.14,<4' certifi 'kubernetes>=32,<33' 'msgspec>=0.19' \
        'prometheus-client<1.0' 'pyzmq>=26' 'redis<9' tqdm 'transformers>=4.56' typing-extensions \
        'zstandard<1.0' 'pydantic<=2.13.5' uvloop
}
[ -e "$venv/ready" ] || { install && touch "$venv/ready"; }

FRONTEND=${FRONTEND:-$(cargo bench --bench frontend --no-run 2>&1 | sed -n 's/.*(\(.*\))$/\1/p' | tail -1)}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

rm -rf "$state"
mkdir -p "$state/kv"
export HF_HUB_OFFLINE=1 DYN_FILE_KV=$state/kv DYN_TCP_RPC_HOST=127.0.0.1 DYN_SYSTEM_HOST=127.0.0.1 \
    DYN_TCP_RESPONSE_STREAM_HOST=127.0.0.1 DYN_EVENT_PLANE_HOST=127.0.0.1

name="Dynamo 1.6.1"
front=()
if [ "${TUNED:-0}" = 1 ]; then
    name="Dynamo 1.6.1, tuned"
    export DYN_LOG=error DYN_REQUEST_PLANE_CODEC=msgpack
    front+=(--tokenizer fastokens)
    jemalloc=$(ldconfig -p | sed -n 's/.*libjemalloc\.so.* => //p' | head -1)
    if [ -n "$jemalloc" ]; then export LD_PRELOAD=$jemalloc; else name="$name without jemalloc"; fi
fi
mode=(--pace "$pace")
sequences=1024
case $pace in
    unpaced) speed=(--speedup-ratio 1000000) ;;
    # About 23 ms between tokens, and about 2 s.
    paced) speed=(--speedup-ratio 1000 --decode-speedup-ratio 0.00025) ;;
    memory)
        speed=(--speedup-ratio 1000 --decode-speedup-ratio 0.0000029)
        sequences=4096
        mode=(memory)
        ;;
    *) echo "dynamo.sh: unknown load $pace; use unpaced, paced or memory" >&2; exit 64 ;;
esac

pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap stop EXIT

"$python" -m dynamo.frontend --http-host 127.0.0.1 --http-port "$port" --discovery-backend file \
    --request-plane tcp --router-mode round-robin "${front[@]}" >"$state/frontend.log" 2>&1 &
frontend_pid=$!
pids+=("$frontend_pid")
"$python" -m dynamo.mocker --model-path models/cuelight-tiny --model-name cuelight-tiny \
    --discovery-backend file --request-plane tcp --num-workers 4 "${speed[@]}" --max-num-seqs "$sequences" \
    --num-gpu-blocks-override 65536 --max-num-batched-tokens 65536 >"$state/mocker.log" 2>&1 &
pids+=($!)

for _ in $(seq 300); do
    if curl --silent --max-time 2 "http://127.0.0.1:$port/v1/models" | grep -q cuelight-tiny; then
        ready=1
        break
    fi
    kill -0 "$frontend_pid" || break
    sleep 0.2
done
[ "${ready:-0}" = 1 ] || { echo "dynamo.sh: not ready; logs are in $state" >&2; exit 1; }

unset LD_PRELOAD
"$FRONTEND" "${mode[@]}" --target "$name=http://127.0.0.1:$port" --pid "$frontend_pid" \
    --model cuelight-tiny "$@"
