#!/usr/bin/env bash
# Builds the CPU image and runs a command in it on one of your folders, which it sees as /data. What it writes there is yours.
#
#   ./scripts/local_docker.sh [--dry_run] [--help] FOLDER COMMAND [ARGUMENT ...]
#   ./scripts/local_docker.sh ~/survey rookery predict --model /data/model --mosaics '/data/*.tif' --output /data/detections
#
#   --dry_run   print every command and run none
#   --help      this text
#   ENGINE      docker or podman (default: the first of them that is installed)
#   IMAGE       name of the image to build (default: rookery:cpu)
#
# Write results under /data: everything else in the container is gone with it. Exit code: 2 for bad input, else the command's.
called_from=$PWD
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

# Only the flags before FOLDER are this script's: those after it belong to the command.
own=()
while [[ ${1:-} == -* ]]; do
  own+=("$1")
  shift
done
arguments "${own[@]}"
[ ${#FLAGS[@]} -eq 0 ] || die "${FLAGS[0]} is not a flag of local_docker.sh: it takes --dry_run and --help, then FOLDER and the command"
[ $# -ge 2 ] || die "FOLDER or COMMAND is missing: ./scripts/local_docker.sh ~/survey rookery --help"
folder=$(cd "$called_from" && cd -- "$1" 2>/dev/null && pwd) \
  || die "$1 is not a folder that can be opened: name the one that holds your survey"
# Engines read --volume as FOLDER:MOUNT:OPTIONS.
[[ $folder != *:* ]] || die "$folder: an engine cannot mount a folder whose name holds a colon: rename it, or make a link and name that"
shift

engine=${ENGINE:-$(command -v docker || command -v podman || true)}
engine=${engine##*/}
case $engine in
  docker | podman) ;;
  '') die "neither docker nor podman was found: install one of them, or run the command without an image (README.md)" ;;
  *) die "ENGINE=$engine: must be docker or podman" ;;
esac
if [ "${DRY_RUN:-0}" != 1 ]; then
  command -v "$engine" >/dev/null || die "ENGINE=$engine was not found: install it, or name the other one of docker and podman"
  answer=$("$engine" info 2>&1 >/dev/null) \
    || die "$engine does not answer (${answer##*$'\n'}): start its service, or join the group that may use it"
fi

image=${IMAGE:-rookery:cpu}
as_caller=(--user "$(id -u):$(id -g)")
# Without root, podman shifts the numbers of users; this one must stay what it is, so that results are the caller's.
[ "$engine" = docker ] || [ "$(id -u)" = 0 ] || as_caller+=(--userns=keep-id)
terminal=()
[ ! -t 0 ] || [ ! -t 1 ] || terminal=(--interactive --tty)

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
run "$engine" build --target cpu --build-arg "REVISION=$revision" --tag "$image" .
run "$engine" run --rm "${terminal[@]}" "${as_caller[@]}" --volume "$folder:/data" "$image" "$@"
