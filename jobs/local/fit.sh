#!/usr/bin/env bash
# Plan once, then fit on all cores of this machine; start it again after any interruption.
#   jobs/local/fit.sh CONFIG RUN [CATALOG]
set -euo pipefail
config=${1:?configuration, a name or a YAML file}
run=${2:?run directory}
catalog=${3:-}

if [ ! -e "$run/fingerprint.json" ]; then
    popcosmos-hpc plan "$config" --run "$run" ${catalog:+--input "$catalog"}
fi
popcosmos-hpc fit "$run" --workers "$(nproc)"
popcosmos-hpc export "$run"
popcosmos-hpc report "$run"
