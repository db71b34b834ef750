#!/usr/bin/env bash
# Shared by the scripts whose work is a Beam job: source it after common.sh, do not run it.

# choose_runner FOLDER: reads RUNNER from the environment and sets BEAM, Beam's flags for it. For Dataflow it wants what Dataflow
# needs to know, and looks whether the bucket is there and in the region. FOLDER is where the job writes.
choose_runner() {
  BEAM=()
  case ${RUNNER:-local} in
    local) at_hand base ;;
    dataflow)
      # In a shell of its own: `${X:?}` would end this one with code 1, and bad input is 2.
      (: "${PROJECT:?the ID of the project that pays for Dataflow}" \
        "${REGION:?where the workers run: the region of the bucket, such as europe-west4}" \
        "${BUCKET:?the bucket that takes the temporary files of Dataflow, in the same region}" \
        "${IMAGE:?the image of the workers, such as REGION-docker.pkg.dev/PROJECT/rookery/beam:TAG}") || exit 2
      at_hand beam
      local bucket=${BUCKET#gs://}
      BEAM=(--runner DataflowRunner --project "$PROJECT" --region "$REGION" --temp_location "gs://${bucket%%/*}/tmp"
        --sdk_container_image "$IMAGE" --sdk_location container)
      if [ -n "${SERVICE_ACCOUNT:-}" ]; then
        BEAM+=(--service_account_email "$SERVICE_ACCOUNT")
      fi
      case $1 in
        gs://*) ;;
        *) die "--output=$1: the workers of Dataflow cannot see it; give a folder in a bucket, gs://BUCKET/FOLDER" ;;
      esac
      run python -m cloud.buckets "gs://${bucket%%/*}" "$1" --region "$REGION" || exit
      ;;
    *) die "RUNNER=$RUNNER: must be local, for this machine, or dataflow" ;;
  esac
}

# print_launch_request VERB: what `rookery VERB` would send to Dataflow, built by Beam itself. Sends nothing.
print_launch_request() {
  if [ "${RUNNER:-local}" != dataflow ]; then
    return
  fi
  if ! python -c 'import rookery, google.cloud.dataflow_v1beta3' 2>/dev/null; then
    echo "# the launch request is shown where Beam's packages for Google Cloud are installed: pip install 'rookery[gcp]'"
    return
  fi
  echo "# the launch request, as Beam makes it (rookery $1 ... --dry_run):"
  rookery "$1" "${FLAGS[@]}" "${BEAM[@]}" --dry_run
}
