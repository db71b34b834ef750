#!/usr/bin/env bash
# Stage 3: checkpoints of a training run -> model, which is a SavedModel and its model.json. Takes the best checkpoint.
#
#   ./scripts/3_export.sh --model_dir gs://BUCKET/run --output gs://BUCKET/model [FLAG ...]
#
# Flags are those of `rookery export`; folders are local or gs://. Needs no TPU.
#
#   --dry_run   print every command and run none
#   --help      this text
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
arguments "$@"
model_dir=$(value model_dir) output=$(value output)
[ -n "$model_dir" ] || die "--model_dir is missing: name the folder that \`rookery train\` or 2_train_tpu.sh wrote"
[ -n "$output" ] || die "--output is missing: name a new folder for the model, a local one or gs://BUCKET/FOLDER"
at_hand base

run rookery export "${FLAGS[@]}" \
  || stop $? "no model in $output. The run in $model_dir is as it was: mend the cause above and give the same command again"
