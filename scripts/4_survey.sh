#!/usr/bin/env bash
# Stage 4: model and mosaics -> detections, counts with intervals, an evaluation where there are annotations, one HTML page.
#
#   ./scripts/4_survey.sh --model model --mosaics 'survey/*.tif' --output detections [FLAG ...]
#   RUNNER=dataflow PROJECT=p REGION=r BUCKET=b IMAGE=i ./scripts/4_survey.sh --model gs://b/model --mosaics 'gs://b/*.tif' ...
#
# Flags are those of `rookery predict`, and Beam's. The same command again goes on where it stopped. The page is OUTPUT/report.html.
#
#   --dry_run           print every command and run none
#   --help              this text
#   ANNOTATIONS         pattern of annotation files of these mosaics: evaluate against them
#   ANNOTATION_FORMAT   their format (default: voc)
#   RUNNER              local (the default) or dataflow, for the prediction; the rest runs here. Dataflow needs:
#   PROJECT             ID of the project that pays
#   REGION              where the workers run: that of the bucket, such as europe-west4
#   BUCKET              takes Dataflow's own files, under tmp/
#   IMAGE               the workers' image, such as $REGION-docker.pkg.dev/$PROJECT/rookery/beam:TAG
#   SERVICE_ACCOUNT     e-mail of the account that the workers run as (default: Compute Engine's)
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/beam.sh
source scripts/beam.sh
arguments "$@"
output=$(value output)
[ -n "$output" ] || die "--output is missing: name the folder for the detections, a local one or gs://BUCKET/FOLDER"
choose_runner "$output"

run rookery predict "${FLAGS[@]}" "${BEAM[@]}" \
  || stop $? "no detections yet. What was finished is kept in $output: mend the cause above and give the same command again"

# From here on each step reads the detections; whichever fails, they are whole.
kept="the detections in $output are whole. Mend the cause above and give the same command again: it does not predict twice"
run rookery count --detections "$output" || stop $? "not counted, $kept"
if [ -n "${ANNOTATIONS:-}" ]; then
  run rookery evaluate --detections "$output" --annotations "$ANNOTATIONS" --annotation_format "${ANNOTATION_FORMAT:-voc}" \
    || stop $? "not evaluated, $kept"
fi
run rookery report --detections "$output" --output "${output%/}/report.html" || stop $? "no report, $kept"
