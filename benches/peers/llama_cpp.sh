#!/usr/bin/env bash
# Measures llama.cpp on the engine benchmark's model: prefill, decode at batch 1 and batch 16.
#
#   benches/peers/llama_cpp.sh MODEL_DIR [OPTIONS OF llama_cpp.py…]
#
# MODEL_DIR is what `cargo bench --bench engine -- --write-model MODEL_DIR` writes. llama.cpp is built
# from the llama-cpp-python source package for this machine's processor, once, into PEERS (default
# target/peers); BUILD_JOBS (default: all cores) bounds that build.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=${1:?usage: llama_cpp.sh MODEL_DIR}
shift
peers=${PEERS:-target/peers}/llama_cpp
venv=$peers/venv

if [ ! -e "$venv/ready" ]; then
    python3 -m venv "$venv"
    CMAKE_BUILD_PARALLEL_LEVEL=${BUILD_JOBS:-$(nproc)} \
        CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" \
        "$venv/bin/pip" install --quiet --no-binary llama-cpp-python \
        llama-cpp-python==0.3.36 gguf==0.19.0 numpy
    touch "$venv/ready"
fi

gguf=$peers/$(basename "$model").gguf
if [ ! -e "$gguf" ] || [ "$model/config.json" -nt "$gguf" ]; then
    "$venv/bin/python" benches/peers/to_gguf.py "$model" "$gguf"
fi
"$venv/bin/python" benches/peers/llama_cpp.py "$gguf" "$@"
