# What the scripts of this folder share. Each runs the nodes of one file of configs/ on this machine until Ctrl-C:
#
#   launch/disagg.sh [--set KEY=VALUE]…
#
# frontend.* is set on the front end only, worker.* on the workers, any other key on all nodes. From the environment:
#   CUELIGHT_BIN     the program; otherwise it is built
#   CUELIGHT_PORTS   first of the ports to take: P is the front end's; the nodes, in order, listen for each other on
#                    P+1, P+3, … and have node.admin on P+2, P+4, …; otherwise the file says
#   CUELIGHT_COOKIE  the cluster's secret; otherwise one is made up
#
# The exit status is 0 after Ctrl-C or SIGTERM, and 1 if a node does not start, all have ended or one had to be killed.

READY_WITHIN_S=60
DRAIN_WITHIN_S=40 # more than node.drain_timeout_s

declare -A pid_of=() # of the nodes that have not been seen to end, by name

say() { printf '%s: %s\n' "$deployment" "$*"; }

fail() {
    say "$@" >&2
    exit 1
}

# launch DEPLOYMENT "NODE…" [--set KEY=VALUE]…: the front end is the first node; ranks that prefill are called so.
launch() {
    deployment=$1
    read -ra nodes <<<"$2"
    shift 2
    for ((i = 1; i <= $#; i += 2)); do
        if [ "${!i}" != --set ] || [ $i = $# ]; then
            echo "usage: launch/$deployment.sh [--set KEY=VALUE]…" >&2
            exit 64
        fi
    done
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    build
    local port=${CUELIGHT_PORTS:-8000}
    url=http://127.0.0.1:$port
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        fail "port $port is taken: end what listens there, or move all ports: CUELIGHT_PORTS=18000 $0"
    fi
    export CUELIGHT_COOKIE=${CUELIGHT_COOKIE:-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}
    logs=$(mktemp -d "${TMPDIR:-/tmp}/cuelight-$deployment.XXXXXX")
    say "logs are in $logs"
    trap end EXIT
    trap 'exit 0' INT TERM HUP QUIT
    for i in "${!nodes[@]}"; do start "$i" "$@"; done
    wait_until_ready
    say "ready; ask it something, or end it with Ctrl-C:"
    echo "curl -s $url/v1/chat/completions -H 'Content-Type: application/json'" \
        "-d '{\"model\": \"cuelight-tiny\", \"messages\": [{\"role\": \"user\", \"content\": \"What is the capital of France?\"}]}'"
    # Others serve on when a node ends: only the last one ends this.
    while [ ${#pid_of[@]} -gt 0 ]; do
        wait -n "${pid_of[@]}" || true
        report_ended
    done
    fail "all nodes have ended"
}

build() {
    binary=${CUELIGHT_BIN:-target/release/cuelight}
    if [ -z "${CUELIGHT_BIN:-}" ] && command -v cargo >/dev/null; then
        cargo build --release --bin cuelight || fail "cargo build --release failed"
    fi
    [ -x "$binary" ] || fail "$binary is missing: build it with cargo build --release"
}

# start INDEX [--set KEY=VALUE]…
start() {
    local i=$1 name=${nodes[$1]} p=${CUELIGHT_PORTS:-} sets=()
    shift
    if [ -n "$p" ]; then
        sets+=(--set "cluster.listen=127.0.0.1:$((p + 1 + 2 * i))" --set "node.admin=127.0.0.1:$((p + 2 + 2 * i))")
        sets+=(--set "cluster.seeds=['127.0.0.1:$((p + 1))']")
        if [ "$i" = 0 ]; then sets+=(--set "frontend.http=127.0.0.1:$p"); fi
    fi
    while [ $# -gt 0 ]; do
        case $2 in
        frontend.*) if [ "$i" = 0 ]; then sets+=("$1" "$2"); fi ;;
        worker.*) if [ "$i" != 0 ]; then sets+=("$1" "$2"); fi ;;
        *) sets+=("$1" "$2") ;;
        esac
        shift 2
    done
    local command=("$binary" node --config "configs/$deployment.yaml" --node "$name" "${sets[@]}")
    # A node ends with this script, also if that is killed.
    if command -v setpriv >/dev/null; then command=(setpriv --pdeathsig TERM "${command[@]}"); fi
    set -m # a process group of its own: the terminal's Ctrl-C is for this script, which ends nodes in order
    "${command[@]}" </dev/null >"$logs/$name.log" 2>&1 &
    pid_of[$name]=$!
    set +m
}

# Whether all ranks are there. Who answers is our front end: the port was free.
is_ready() {
    local health decode='"ranks_ready":([0-9]+)' prefill='"prefill_ranks_ready":([0-9]+)' wanted=0 name
    for name in "${nodes[@]}"; do if [[ $name = prefill* ]]; then wanted=$((wanted + 1)); fi; done
    health=$(curl -fs --noproxy '*' --max-time 2 "$url/health" 2>/dev/null) || return 1
    [[ $health =~ $prefill ]] && [ "${BASH_REMATCH[1]}" -ge $wanted ] || return 1
    [[ $health =~ $decode ]] && [ "${BASH_REMATCH[1]}" -ge $((${#nodes[@]} - 1 - wanted)) ]
}

wait_until_ready() {
    local name last=$((SECONDS + READY_WITHIN_S))
    until is_ready; do
        report_ended
        if [ ${#pid_of[@]} -lt ${#nodes[@]} ]; then exit 1; fi
        if [ $SECONDS -ge $last ]; then
            for name in "${nodes[@]}"; do tail_of "$name"; done
            fail "not ready within $READY_WITHIN_S s; see $logs, and $url/health"
        fi
        sleep 0.1
    done
}

# Says which nodes have ended, and how.
report_ended() {
    local name status
    for name in "${!pid_of[@]}"; do
        if kill -0 "${pid_of[$name]}" 2>/dev/null; then continue; fi
        status=0
        wait "${pid_of[$name]}" || status=$?
        unset "pid_of[$name]"
        say "$name ended with status $status" >&2
        tail_of "$name"
    done
}

tail_of() {
    say "the end of $logs/$1.log:" >&2
    tail -n 12 "$logs/$1.log" | sed 's/^/    /' >&2
}

# Ends all nodes: the front end first, while its workers are there to finish what its clients wait for.
end() {
    local status=$?
    set +e           # also with nobody left to read what is said
    trap '' HUP QUIT PIPE
    trap 'kill_all; exit 1' INT TERM
    if [ ${#pid_of[@]} -gt 0 ]; then say "ending; once more ends it at once"; fi
    end_nodes "${nodes[0]}" || status=1
    end_nodes "${nodes[@]:1}" || status=1
    trap - EXIT
    exit "$status"
}

# end_nodes NAME…: SIGTERM, then SIGKILL to those that take too long.
end_nodes() {
    local name pid left=() last=$((SECONDS + DRAIN_WITHIN_S)) status=0
    for name in "$@"; do if [ -n "${pid_of[$name]:-}" ]; then left+=("$name"); fi; done
    for name in "${left[@]}"; do kill -TERM "${pid_of[$name]}" 2>/dev/null || true; done
    for name in "${left[@]}"; do
        pid=${pid_of[$name]}
        while kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $last ]; do sleep 0.05; done
        if kill -KILL "$pid" 2>/dev/null; then
            say "$name did not end within $DRAIN_WITHIN_S s and was killed; see $logs/$name.log" >&2
            status=1
        fi
        wait "$pid" 2>/dev/null || true
        unset "pid_of[$name]"
    done
    return $status
}

kill_all() {
    trap - EXIT
    if [ ${#pid_of[@]} -gt 0 ]; then kill -KILL "${pid_of[@]}" 2>/dev/null || true; fi
}
