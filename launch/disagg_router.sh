#!/usr/bin/env bash
# A front end that routes by cached prefix, two workers that prefill, and two that decode: configs/disagg_router.yaml. launch/common.sh says what may be given.
set -euo pipefail
source "$(dirname "$0")/common.sh"
launch disagg_router "front prefill1 prefill2 decode1 decode2" "$@"
