#!/usr/bin/env bash
# Everything that must hold: style, types, shell scripts, tests. Makes its own environment.
# usage: ./scripts/test.sh [PYTEST ARGUMENT ...]
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

environment dev
export PATH="$PWD/.venv/bin:$PATH"

say "Style, types, shell scripts"
ruff check .
ruff format --check .
mypy
shellcheck --external-sources scripts/*.sh .ci/run

say "Tests"
python -m pytest "$@"
