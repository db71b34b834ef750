#!/usr/bin/env bash
# Shared by the scripts: source it, do not run it. Everything happens in the project's root, in a virtual environment of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# arguments "$@": takes --help and --dry_run out of a script's arguments and leaves the others in FLAGS. --help prints the comment
# that opens the script; a dry run prints every command and runs none.
arguments() {
  local one
  FLAGS=()
  for one in "$@"; do
    case $one in
      -h | --help)
        sed '1d; /^# shellcheck/,$d; s/^# \{0,1\}//' "scripts/${0##*/}"
        exit 0
        ;;
      --dry_run) DRY_RUN=1 ;;
      *) FLAGS+=("$one") ;;
    esac
  done
}

# value NAME: of the flag --NAME in FLAGS, as --NAME=VALUE or --NAME VALUE; the last one counts. Nothing where it is not given.
value() {
  local i found=
  for ((i = 0; i < ${#FLAGS[@]}; i++)); do
    case ${FLAGS[i]} in
      "--$1="*) found=${FLAGS[i]#*=} ;;
      "--$1") found=${FLAGS[i + 1]:-} ;;
    esac
  done
  printf '%s' "$found"
}

# run COMMAND...: prints a command, quoted so that it can be pasted, and runs it unless this is a dry run.
run() {
  printf '%q ' "$@" | sed 's/ $/\n/'
  [ "${DRY_RUN:-0}" = 1 ] || "$@"
}

# stop CODE TEXT: ends a script whose step has failed, with the step's exit code, and says what to do next.
stop() {
  printf 'stopped: %s\n' "$2" >&2
  exit "$1"
}

# at_hand SET: the `rookery` on the PATH, where there is one (an activated environment, an image); else the one of environment SET.
# A dry run installs nothing.
at_hand() {
  if command -v rookery >/dev/null; then
    return
  fi
  [ "${DRY_RUN:-0}" = 1 ] || environment "$1"
  export PATH="$PWD/.venv/bin:$PATH"
}

# digest_of LOCK: of what an environment is made from.
digest_of() { sha256sum "$1" pyproject.toml | sha256sum; }

# environment SET: makes .venv from requirements/SET.txt, every file checked against its hash, and does nothing when it is there.
# The environment of the tests, dev, will do for base: it has the same files, and more.
environment() {
  local lock="requirements/$1.txt" stamp=.venv/lock.sha256 python want made=
  want=$(digest_of "$lock")
  [ ! -f "$stamp" ] || made=$(cat "$stamp")
  if [ "$made" = "$want" ] || { [ "$1" = base ] && [ "$made" = "$(digest_of requirements/dev.txt)" ]; }; then
    return
  fi
  python=$(command -v python3.11 || command -v python3 || true)
  [ -n "$python" ] || die "Rookery needs Python 3.11, no python3 was found: install it (Debian: apt-get install python3.11-venv)"
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
    || die "Rookery needs Python 3.11, $python is $("$python" --version): put python3.11 on the PATH"
  say "Environment: .venv from $lock"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r "$lock"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-build-isolation --editable .
  echo "$want" >"$stamp"
}
