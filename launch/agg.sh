#!/usr/bin/env bash
# A front end and one worker: configs/agg.yaml. launch/common.sh says what may be given.
set -euo pipefail
source "$(dirname "$0")/common.sh"
launch agg "front worker" "$@"
