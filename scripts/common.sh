#!/usr/bin/env bash
# Shared by the scripts: source it, do not run it. Everything happens in the project's root, in a virtual environment of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# environment SET: makes .venv from requirements/SET.txt, every file checked against its hash, and does nothing when it is there.
environment() {
  local lock="requirements/$1.txt" stamp=.venv/lock.sha256 python want
  want=$(sha256sum "$lock" pyproject.toml | sha256sum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    return
  fi
  python=$(command -v python3.11 || command -v python3 || true)
  [ -n "$python" ] || die "Rookery needs Python 3.11, no python3 was found: install it (Debian: apt-get install python3.11-venv)"
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    die "Rookery needs Python 3.11, $python is $("$python" --version): put python3.11 on the PATH"
  say "Environment: .venv from $lock"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r "$lock"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-build-isolation --editable .
  echo "$want" >"$stamp"
}
