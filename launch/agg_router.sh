#!/usr/bin/env bash
# A front end that routes by cached prefix, and three workers: configs/agg_router.yaml. launch/common.sh says what may be given.
set -euo pipefail
source "$(dirname "$0")/common.sh"
launch agg_router "front worker1 worker2 worker3" "$@"
