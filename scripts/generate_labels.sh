#!/usr/bin/env bash
# For those who come from the seafloor project: its generate_labels.sh is `rookery labels` here.
#
#   ./scripts/generate_labels.sh -d ANNOTATIONS [-s FOLDER] [FLAG ...]
#
#   -d FOLDER   with the annotations      becomes --annotations 'FOLDER/*.xml'
#   -s FOLDER   for the label map         becomes --output FOLDER/label.pbtxt (default: this folder, as there)
#   -h, --help  this text
#   --dry_run   print the command and do not run it
#
# Other flags are those of `rookery labels`. Two things differ: names keep their spelling (there they became UPPER_CASE), and are
# in alphabetical order. An existing label map with other classes is never overwritten; there was a question to answer.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
arguments "$@"
folder='' save=. rest=()
set -- "${FLAGS[@]}"
while [ $# -gt 0 ]; do
  case $1 in
    -d | -s)
      [ $# -gt 1 ] || die "$1 is given without a folder; --help lists the flags"
      if [ "$1" = -d ]; then folder=$2; else save=$2; fi
      shift
      ;;
    -[!-]*) die "$1 is not a flag of generate_labels.sh: it has -d, -s and -h, and those of \`rookery labels\`" ;;
    *) rest+=("$1") ;;
  esac
  shift
done
[ -n "$folder" ] || die "-d is missing: name the folder with the annotations, such as data/annotations"
at_hand base

run rookery labels --annotations "${folder%/}/*.xml" --output "${save%/}/label.pbtxt" "${rest[@]}" \
  || stop $? "no label map was written"
