#!/usr/bin/env bash
# The demo on all cores of this machine.
#   jobs/local/demo.sh [RUN]
set -euo pipefail
popcosmos-hpc demo --out "${1:-demo_run}" --workers "$(nproc)"
