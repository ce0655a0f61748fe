#!/usr/bin/env bash
# A front end, a worker that prefills, and one that decodes: configs/disagg.yaml. launch/common.sh says what may be given.
set -euo pipefail
source "$(dirname "$0")/common.sh"
launch disagg "front prefill decode" "$@"
