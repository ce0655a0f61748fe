#!/usr/bin/env bash
# A node with a front end and TensorRT-LLM engines: docs/tensorrt-llm.md. usage() says what may be given.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/trtllm.sh --engine DIR --model DIR [OPTION]… [--set KEY=VALUE]…

Starts one node that serves TensorRT-LLM engines, until Ctrl-C.

  --engine DIR           what trtllm-build has written: config.json and rank*.engine
  --model DIR            Hugging Face folder with the tokenizer and the chat template
  --options FILE         YAML file with TensorRT-LLM's own keys (worker.trtllm.options)
  --mode MODE            leader (default): mpirun starts a process for each GPU of an engine;
                         orchestrator: TensorRT-LLM starts its executorWorker for them
  --executor-worker FILE executorWorker; otherwise $TRTLLM_ROOT/bin/executorWorker
  --dp N                 engines, each a data-parallel rank (default 1)
  --devices I,J,…        GPUs of all engines: the first tensor x pipeline x context parallel ones are the
                         first engine's, and so on; otherwise 0, 1, … if there is more than one engine
  --stand-in             the program was built with the feature trtllm-standin: no GPU, library or file
                         rank*.engine is looked for
  --dry-run              print the command instead of running it
  --set KEY=VALUE        set any key of the configuration, such as frontend.http=0.0.0.0:8000
  --help                 this text

From the environment: CUELIGHT_BIN, the program (otherwise target/release/cuelight); TRTLLM_ROOT, the installed
package tensorrt_llm; LD_LIBRARY_PATH, where its libs folder must be.
The exit status is 64 for wrong arguments, 1 if something is missing, otherwise the program's.
END
}

fail() {
    echo "launch/trtllm.sh: $*" >&2
    exit 1
}

wrong() {
    echo "launch/trtllm.sh: $*; see --help" >&2
    exit 64
}

read_arguments() {
    engine='' model='' options='' mode=leader executor_worker='' dp=1 devices='' stand_in='' dry_run='' sets=()
    while [ $# -gt 0 ]; do
        case $1 in
        --help | -h) usage && exit 0 ;;
        --dry-run) dry_run=1 && shift && continue ;;
        --stand-in) stand_in=1 && shift && continue ;;
        --engine | --model | --options | --mode | --executor-worker | --dp | --devices | --set) ;;
        *) wrong "unknown argument $1" ;;
        esac
        [ $# -ge 2 ] || wrong "$1 needs a value"
        case $1 in
        --engine) engine=$2 ;;
        --model) model=$2 ;;
        --options) options=$2 ;;
        --mode) mode=$2 ;;
        --executor-worker) executor_worker=$2 ;;
        --dp) dp=$2 ;;
        --devices) devices=$2 ;;
        --set) sets+=(--set "$2") ;;
        esac
        shift 2
    done
    [ -n "$engine" ] || wrong "--engine is missing: name the folder that trtllm-build has written"
    [ -n "$model" ] || wrong "--model is missing: name the Hugging Face folder with the tokenizer"
    [[ $mode = leader || $mode = orchestrator ]] || wrong "--mode $mode: must be leader or orchestrator"
    [[ $dp =~ ^[1-9][0-9]{0,3}$ ]] || wrong "--dp $dp: must be a whole number from 1"
    [[ -z $devices || $devices =~ ^[0-9]+(,[0-9]+)*$ ]] || wrong "--devices $devices: must be numbers such as 0,1"
}

# Says how many GPUs an engine was built for: a field of its config.json, 1 if that has none.
built_for() {
    local found
    found=$(grep -o "\"$1\" *: *[0-9]*" "$engine/config.json" | head -n 1 | grep -o '[0-9]*$' || true)
    echo "${found:-1}"
}

check_files() {
    [ -d "$engine" ] || fail "--engine $engine is no folder: name what trtllm-build has written (--output_dir)"
    [ -f "$model/config.json" ] && [ -f "$model/tokenizer.json" ] ||
        fail "--model $model has no config.json and tokenizer.json: name the Hugging Face folder that the engine was built from"
    [ -z "$options" ] || [ -f "$options" ] || fail "--options $options is no file"
    world=1
    if [ -f "$engine/config.json" ]; then
        world=$(($(built_for tp_size) * $(built_for pp_size) * $(built_for cp_size)))
    elif [ -z "$stand_in" ]; then
        fail "--engine $engine has no config.json: name what trtllm-build has written (--output_dir)"
    fi
    if [ -n "$stand_in" ]; then return; fi
    local rank
    for ((rank = 0; rank < world; rank++)); do
        [ -f "$engine/rank$rank.engine" ] ||
            fail "--engine $engine is for $world GPUs but has no rank$rank.engine: copy all of it, or build it again"
    done
}

check_processes() {
    if [ "$mode" = orchestrator ]; then
        if [ -z "$executor_worker" ]; then
            executor_worker=${TRTLLM_ROOT:+$TRTLLM_ROOT/bin/executorWorker}
            [ -n "$executor_worker" ] ||
                fail "--mode orchestrator needs executorWorker: give --executor-worker FILE, or set TRTLLM_ROOT"
        fi
        [ -x "$executor_worker" ] ||
            fail "$executor_worker is no program: name TensorRT-LLM's bin/executorWorker with --executor-worker"
    elif [ "$world" -gt 1 ]; then
        command -v mpirun >/dev/null ||
            fail "the engine is for $world GPUs and there is no mpirun: install Open MPI, or use --mode orchestrator"
    fi
}

check_devices() {
    local wanted=$((dp * world)) listed=() id there
    if [ -z "$devices" ] && [ "$dp" -gt 1 ]; then devices=$(seq -s , 0 $((wanted - 1))); fi
    IFS=, read -ra listed <<<"$devices"
    if [ -n "$devices" ] && [ ${#listed[@]} != $wanted ]; then
        fail "--devices lists ${#listed[@]} GPUs where $dp engines for $world each need $wanted"
    fi
    if [ -n "$stand_in" ]; then return; fi
    command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi: is this a machine with GPUs and NVIDIA's driver?"
    there=$(nvidia-smi -L | grep -c '^GPU ' || true)
    [ "$there" -ge $wanted ] || fail "$dp engines for $world GPUs each need $wanted, and nvidia-smi lists $there"
    for id in "${listed[@]}"; do
        [ "$id" -lt "$there" ] || fail "--devices names GPU $id, and nvidia-smi lists 0 to $((there - 1))"
    done
}

check_libraries() {
    local dir dirs
    IFS=: read -ra dirs <<<"${LD_LIBRARY_PATH:-}"
    for dir in "${dirs[@]}"; do
        if [ -n "$dir" ] && [ -f "$dir/libtensorrt_llm.so" ]; then return; fi
    done
    fail "no folder of LD_LIBRARY_PATH has libtensorrt_llm.so: add $(printf %s "${TRTLLM_ROOT:-…/dist-packages/tensorrt_llm}")/libs" \
        "(docs/tensorrt-llm.md), from which the UCX and NIXL wrappers are loaded as well"
}

# A YAML text for a path.
quoted() { printf "'%s'" "${1//\'/\'\'}"; }

make_command() {
    command=("$binary" serve --set "worker.engine=trtllm" --set "worker.model=$(quoted "$model")")
    command+=(--set "worker.trtllm.engine_dir=$(quoted "$engine")" --set "worker.trtllm.mode=$mode")
    if [ -n "$options" ]; then command+=(--set "worker.trtllm.options=$(quoted "$options")"); fi
    if [ "$mode" = orchestrator ]; then
        command+=(--set "worker.trtllm.worker_executable=$(quoted "$executor_worker")")
    elif [ "$world" -gt 1 ]; then
        local words="mpirun, -n, \"$world\""
        # Open MPI does not start anything for root without being told.
        if [ "$(id -u)" = 0 ]; then words+=", --allow-run-as-root"; fi
        command+=(--set "worker.process_command=[$words]")
    fi
    if [ "$dp" -gt 1 ]; then command+=(--set "worker.dp_size=$dp"); fi
    if [ -n "$devices" ]; then command+=(--set "worker.trtllm.devices=[${devices//,/, }]"); fi
    command+=("${sets[@]}")
}

read_arguments "$@"
binary=${CUELIGHT_BIN:-$(dirname "$0")/../target/release/cuelight}
[ -x "$binary" ] || fail "$binary is missing: build it with cargo build --release --features trtllm"
check_files
check_processes
check_devices
if [ -z "$stand_in" ]; then check_libraries; fi
make_command
if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
exec "${command[@]}"
