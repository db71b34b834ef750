#!/usr/bin/env bash
# Stage 1: mosaics and annotations -> dataset of TFRecord shards, then the doctor's judgement of it.
#
#   ./scripts/1_make_records.sh --mosaics 'survey/*.tif' --annotations 'survey/*.xml' --output dataset [FLAG ...]
#   RUNNER=dataflow PROJECT=p REGION=r BUCKET=b IMAGE=i ./scripts/1_make_records.sh --mosaics 'gs://b/*.tif' ...
#
# Flags are those of `rookery shard`, and Beam's. The same command again completes a run that was interrupted. The doctor writes
# its page beside the dataset, as OUTPUT_doctor.html. Exit code: 0 fit to train, 2 bad input, 3 not fit.
#
#   --dry_run         print every command and run none; on Dataflow also the launch request, as far as Beam's packages are there
#   --help            this text
#   RUNNER            local (the default) or dataflow, which needs:
#   PROJECT           ID of the project that pays
#   REGION            where the workers run: that of the bucket, such as europe-west4
#   BUCKET            takes Dataflow's own files, under tmp/
#   IMAGE             the workers' image, such as $REGION-docker.pkg.dev/$PROJECT/rookery/beam:TAG
#   SERVICE_ACCOUNT   e-mail of the account that the workers run as (default: Compute Engine's)
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/beam.sh
source scripts/beam.sh
arguments "$@"
output=$(value output)
[ -n "$output" ] || die "--output is missing: name the folder of the dataset, a local one or gs://BUCKET/FOLDER"
choose_runner "$output"

run rookery shard "${FLAGS[@]}" "${BEAM[@]}" \
  || stop $? "no dataset yet. Finished shards are kept in $output: mend the cause above and give the same command again"
if [ "${DRY_RUN:-0}" = 1 ]; then
  print_launch_request shard
fi

run rookery doctor --dataset "$output" --output "${output%/}_doctor.html" \
  || stop $? "the dataset is in $output, and the doctor objects (code 3) or could not look: read ${output%/}_doctor.html and what is above"
