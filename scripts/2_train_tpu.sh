#!/usr/bin/env bash
# Trains on a Cloud TPU: asks for it as a queued resource, trains, shows the log, asks again when it is taken away, deletes it.
#
#   PROJECT=p ZONE=us-west4-a IMAGE=us-west4-docker.pkg.dev/p/rookery/tpu:TAG ./scripts/2_train_tpu.sh \
#     --name seals --accelerator v5litepod-8 [--spot] --dataset gs://B/dataset --model_dir gs://B/run \
#     [--runtime_version V] [--service_account S] [--max_failures 3] [--yes] [--no_doctor] [--no_preflight] [FLAG ...]
#
# FLAGs are those of `rookery train`. `rookery doctor` and `rookery preflight` judge the job first. The same command again goes on
# watching. Ctrl-C asks whether to delete the TPU; --yes deletes it without asking. Logs: gs://B/run.job/attempt-0001.000.log.
# --dry_run prints every command and runs none. Exit code: 0 trained, 2 bad input, 3 the job does not fit, 130 interrupted, 1 else.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
arguments "$@"
# In a shell of its own: `${X:?}` would end this one with code 1, and bad input is 2.
(: "${PROJECT:?say the id of the Google Cloud project that pays: PROJECT=...}" \
  "${ZONE:?say the zone of the TPU: ZONE=us-west4-a}" \
  "${IMAGE:?say the image that holds Rookery: IMAGE=REGION-docker.pkg.dev/PROJECT/rookery/tpu:TAG}") || exit 2
at_hand base

if [ "${DRY_RUN:-0}" = 1 ]; then
  FLAGS+=(--dry_run)
fi
exec python -m cloud.train_tpu --project "$PROJECT" --zone "$ZONE" --image "$IMAGE" ${FLAGS[@]+"${FLAGS[@]}"}
