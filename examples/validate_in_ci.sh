#!/usr/bin/env bash
# A CI step: export a checkpoint, validate the bundle, keep the report.
# Usage: validate_in_ci.sh CHECKPOINT BUNDLE. A failed validation fails the step (exit code 1).
set -euo pipefail
nemo-trt export "$1" "$2" --force
nemo-trt validate "$2" --json validation-report.json
