#!/usr/bin/env bash
# Makes the hash-locked sets of requirements/ from pyproject.toml, for Python 3.11 on Linux x86-64. Needs uv.
#
#   ./scripts/lock.sh [--dry_run] [--help] [SET ...]      sets: base preflight dev tpu beam build; default: all
#
# What base.txt names keeps its version in every set. To move a package, take its lines out of base.txt first.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

# compile SET ARGUMENT...
compile() {
  run uv pip compile --quiet "${@:2}" --python-version 3.11 --python-platform x86_64-manylinux_2_31 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --custom-compile-command "./scripts/lock.sh $1" -o "requirements/$1.txt"
}

# base.txt without the one version that Beam's own extra refuses: apache-beam[gcp] 2.77 wants google-auth-httplib2 below 0.3, and
# nothing else does, so it is older in beam.txt alone.
without_httplib2() {
  sed -E '/^google-auth-httplib2==/d; /^ /d; s/ \\$//' requirements/base.txt
}

arguments "$@"
sets=("${FLAGS[@]}")
[ ${#sets[@]} -gt 0 ] || sets=(base preflight dev tpu beam build)
for set in "${sets[@]}"; do
  case "$set" in
    base | preflight | dev | tpu | beam | build) ;;
    *) die "$set is not a set: must be base, preflight, dev, tpu, beam or build" ;;
  esac
done
[ "${DRY_RUN:-0}" = 1 ] || command -v uv >/dev/null \
  || die "uv was not found: install it into an environment of its own (python3 -m pip install uv) and put it on the PATH"

for set in "${sets[@]}"; do
  say "requirements/$set.txt"
  case "$set" in
    base) compile base pyproject.toml -c requirements/base.txt ;;
    preflight) compile preflight pyproject.toml --extra preflight -c requirements/base.txt ;;
    dev) compile dev pyproject.toml --extra dev --extra preflight -c requirements/base.txt ;;
    tpu) compile tpu pyproject.toml --extra tpu -c requirements/base.txt --override requirements/tpu_overrides.txt ;;
    beam) compile beam pyproject.toml --extra gcp -c - < <(without_httplib2) ;;
    # What the source packages among them are built with: seqeval fetches setuptools-scm on its own where it is missing.
    build) printf 'setuptools\nsetuptools-scm\nwheel\n' | compile build - -c requirements/base.txt ;;
  esac
done
