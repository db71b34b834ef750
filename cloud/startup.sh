#!/usr/bin/env bash
# Start-up script of the TPU VM: runs the job's container on worker 0. Everything it needs is in the VM's metadata; a reboot runs it
# again, and training goes on from its last checkpoint. Its own output is in the VM's serial console and journal.
set -euo pipefail

metadata() {
  curl --silent --fail --retry 5 --retry-connrefused --header 'Metadata-Flavor: Google' \
    "http://${METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/$1"
}

worker=$(metadata attributes/agent-worker-number || echo 0)
if [ "$worker" != 0 ]; then
  echo "rookery: worker $worker is driven from worker 0"
  exit 0
fi

image=$(metadata attributes/rookery-image)
folder=$(metadata attributes/rookery-folder)
attempt=$(metadata attributes/rookery-attempt)
name=$(metadata attributes/rookery-name)
# Quoted for a shell by whoever made the job, who also gave this script.
command=()
eval "command=($(metadata attributes/rookery-command))"

# Worker 0 reaches all chips of a slice of several hosts through their servers, and must not take its own away from them.
environment=()
if tpu=$(metadata attributes/rookery-tpu-name); then
  environment=(--env "TPU_NAME=$tpu" --env TPU_LOAD_LIBRARY=0)
fi

# pull: by the VM's own token, which is good for about an hour: fetched anew for each try.
pull() {
  metadata service-accounts/default/token | sed 's/.*"access_token": *"\([^"]*\)".*/\1/' \
    | docker login --username oauth2accesstoken --password-stdin "https://${image%%/*}" \
    && docker pull "$image"
}

wait=5
for try in 1 2 3 4 5 6; do
  if pull; then
    break
  fi
  if [ "$try" = 6 ]; then
    echo "rookery: $image cannot be pulled: does it exist, and has the service account the role Artifact Registry Reader?" >&2
    exit 1
  fi
  echo "rookery: pulling $image failed, trying again in $wait s" >&2
  sleep "$wait"
  wait=$((wait * 2))
done

# --privileged: the chips are devices of the machine. --network=host: the metadata server, and the servers of other hosts.
# The name keeps a second container away from the chips, where a script runs twice.
docker rm --force rookery >/dev/null 2>&1 || true
exec docker run --name rookery --privileged --network=host --stop-timeout 25 ${environment[@]+"${environment[@]}"} "$image" \
  python -m cloud.worker --job "$folder" --attempt "$attempt" --name "$name" -- "${command[@]}"
