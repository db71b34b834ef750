#!/usr/bin/env bash
# The seal study's experiment: what a YOLO costs and how good it gets as its images grow, for each backbone and head.
# usage: ./scripts/size_sweep.sh --output FOLDER [--dry_run] [FLAG ...]
#   ./scripts/size_sweep.sh --output runs/sizes --num_classes 1 --no-train              compiled memory and speed, no dataset needed
#   ./scripts/size_sweep.sh --output runs/sizes --dataset DATASET --steps 2000          and average precision, on patches of 800 px
#   ./scripts/size_sweep.sh --output runs/sizes --num_classes 1 --shard "--mosaics=... --annotations=..."    cut again for each size
# --dry_run prints the commands that are left to do; --help lists all flags. Run it again to go on where it stopped. The compiler:
# .venv/bin/python -m pip install --require-hashes -r requirements/preflight.txt
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
: "${1:?say what to do: --output FOLDER, or --help}"

case " $* " in
  *" --help "* | *" -h "* | *" --dry_run "*) ;; # nothing is to be installed to look
  *) environment base ;;
esac
export PATH="$PWD/.venv/bin:$PATH"
exec python3 benchmarks/size_sweep.py "$@"
