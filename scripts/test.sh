#!/usr/bin/env bash
# Everything that must hold: style, types, shell scripts, tests. Makes its own environment.
# usage: ./scripts/test.sh [PYTEST ARGUMENT ...]
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

environment dev
export PATH="$PWD/.venv/bin:$PATH"

# The report is tested in a real browser. Where it cannot be had, those tests skip and say so.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  say "Chromium"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; } >/dev/null \
    || echo "apt-get could not install chromium: the tests of the report in a browser will skip"
fi

say "Style, types, shell scripts"
ruff check .
ruff format --check .
mypy
shellcheck --external-sources scripts/*.sh cloud/*.sh .ci/run

say "Tests"
# Two at a time, as each wants 3 GB and more than one core; those of a file stay together, as they share what they made. A process
# that was ended because its test hung (pyproject.toml) is replaced once: the next would most likely hang in the same test.
python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 1 --durations 20 --durations-min 10 "$@"
