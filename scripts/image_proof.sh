#!/usr/bin/env bash
# Builds the images without Docker's daemon and without a registry, and uses them: buildah, on a Debian made by debootstrap that
# bears the names of the Dockerfile's bases. Not part of continuous integration: it takes many minutes, and 10 GB under TMPDIR.
#
#   ./scripts/image_proof.sh [--dry_run] [--help] [cpu] [tpu] [beam]      default: all three
#
#   cpu    as users known by number only: rookery --help, then shard, train, export, predict and report on real mosaics
#   tpu    tensorflow-tpu and libtpu are there, in the versions that belong together, and rookery --help answers; needs no TPU
#   beam   the base's entrypoint is kept; Python has what Dataflow's workers import
#
#   STORAGE_DRIVER   vfs where the kernel refuses overlay, as inside some containers: slower, and several times the space
#
# Needs root (debootstrap); installs buildah and debootstrap where they are missing. Removes what it made, also when it fails.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
arguments "$@"
targets=("${FLAGS[@]}")
[ ${#targets[@]} -gt 0 ] || targets=(cpu tpu beam)
for target in "${targets[@]}"; do
  case $target in
    cpu | tpu | beam) ;;
    *) die "$target is not an image: must be cpu, tpu or beam" ;;
  esac
done

# What buildah mounted goes first, or `rm` would wait for it, and reach through it.
clean_up() {
  "${b[@]}" rm --all >/dev/null 2>&1 || true
  awk -v under="$scratch/" 'index($2, under) == 1 { print $2 }' /proc/self/mounts | sort -r | xargs --no-run-if-empty umount --lazy
  rm -rf --one-file-system "$scratch"
}

if [ "${DRY_RUN:-0}" = 1 ]; then
  scratch=${TMPDIR:-/tmp}/rookery_images
else
  [ "$(id -u)" = 0 ] || die "debootstrap makes device files and owners, which only root can: run this as root, on a machine of your own"
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/rookery_images.XXXXXX")
  trap clean_up EXIT
fi
# Storage of its own: nothing of the machine's images is touched, and all of it goes with one folder.
b=(buildah --root "$scratch/storage" --runroot "$scratch/run" ${STORAGE_DRIVER:+--storage-driver "$STORAGE_DRIVER"})
if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  run apt-get update --quiet=2
  run apt-get install --yes --quiet=2 --no-install-recommends buildah debootstrap
fi
export BUILDAH_ISOLATION=chroot
times=()

# timed NAME COMMAND...
timed() {
  local began=$SECONDS
  say "$1"
  "${@:2}"
  times+=("$(printf '%5d s  %s' $((SECONDS - began)) "$1")")
}

# inside COMMAND...: in the container of the image at hand, as the user that the image names.
inside() { run "${b[@]}" run --volume "$scratch/data:/data" proof -- "$@"; }

# as_number COMMAND...: the same, as a user whom no file of the image knows.
as_number() { run "${b[@]}" run --user 4321:4321 --volume "$scratch/data:/data" proof -- "$@"; }

# same WANTED COMMAND...: ends the proof where the command's last line is another.
same() {
  local found
  if [ "${DRY_RUN:-0}" = 1 ]; then
    "${@:2}"
    return
  fi
  found=$("${@:2}" | tail -n 1)
  [ "$found" = "$1" ] || stop 1 "found '$found' where '$1' was wanted: ${*:2}"
  echo "ok: $found"
}

make_debian() {
  run bash -c "debootstrap --variant=minbase --include=ca-certificates,python3.11,python3.11-venv,python3-pip bookworm \
    '$scratch/debian' >'$scratch/debian.log'"
  # Where the official images have it. Debian keeps pip out of its own Python; theirs is another one.
  run ln -s /usr/bin/python3.11 "$scratch/debian/usr/local/bin/python"
  run ln -s /usr/bin/python3.11 "$scratch/debian/usr/local/bin/python3"
  run rm "$scratch/debian/usr/lib/python3.11/EXTERNALLY-MANAGED"
}

# make_base ARGUMENT_OF_DOCKERFILE CONFIG...: that Debian, under the name that the argument has, with what the real base starts.
make_base() {
  run "${b[@]}" from --name base scratch
  run "${b[@]}" add --quiet base "$scratch/debian" /
  run "${b[@]}" config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${@:2}" base
  run "${b[@]}" commit --quiet --format docker --rm base "docker.io/$(sed -n "s/^ARG $1=\(.*:.*\)/\1/p" Dockerfile)"
}

# make_image TARGET: leaves it open as the container `proof`. What this machine's pip and TLS need to reach the package index is
# mounted while building, and is no part of the image.
make_image() {
  local file mounts=()
  for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
    [ ! -f "$file" ] || mounts+=(--volume "$file:$file:ro")
  done
  run "${b[@]}" bud --format docker --layers=false --pull-never --target "$1" --build-arg REVISION=proof "${mounts[@]}" \
    --logfile "$scratch/$1.log" --tag "rookery:$1" . || {
    tail -n 30 "$scratch/$1.log" >&2
    stop 1 "the $1 image was not built: see above"
  }
  run "${b[@]}" from --pull-never --name proof "localhost/rookery:$1"
  same "proof" run "${b[@]}" inspect --format '{{index .Docker.Config.Labels "org.opencontainers.image.revision"}}' proof
  same "[CMD rookery --help]" run "${b[@]}" inspect --format '{{.Docker.Config.Healthcheck.Test}}' proof
}

drop_image() {
  run "${b[@]}" rm proof
  run "${b[@]}" rmi --force "localhost/rookery:$1"
}

fetch_sample() {
  run python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/sample.txt \
    -d "$scratch/sample"
  run bash -c "python3 -m zipfile -e '$scratch'/sample/deepforest-*.whl '$scratch/data'"
}

use_cpu() {
  local known=/data/deepforest/data/2019_YELL_2_528000_4978000_image_crop2
  local unseen=/data/deepforest/data/2019_YELL_2_541000_4977000_image_crop
  same 10001 inside id -u
  inside rookery --help
  same 4321 as_number id -u
  as_number rookery shard --mosaics $known.png --annotations $known.xml --annotation_format voc --patch_size 416 --overlap 64 \
    --split train=0.8,val=0.2 --output /data/out/dataset
  as_number rookery train --dataset /data/out/dataset --model_dir /data/out/training --image_size 256 --steps 6 \
    --validate_every 6 --config tpu_train/configs/retinanet_lite0_cpu.yaml
  as_number rookery export --model_dir /data/out/training --output /data/out/model
  as_number rookery predict --model /data/out/model --mosaics $unseen.png --output /data/out/detections
  as_number rookery report --detections /data/out/detections --output /data/out/report.html
  same 0 run bash -c "find '$scratch/data/out' ! -user 4321 | wc -l"
  same 1 run bash -c "find '$scratch/data/out/report.html' -size +10k | wc -l"
}

use_tpu() {
  same "2.20.0 0.0.21" inside python -c "import importlib.metadata as m; print(m.version('tensorflow-tpu'), m.version('libtpu'))"
  same "none" inside python -c "import importlib.metadata as m; print('tensorflow' if any(d.name == 'tensorflow' for d in m.distributions()) else 'none')"
  # Where no machine of Google's is around it, libtpu would go on asking for its metadata.
  same "42.0" inside env TPU_SKIP_MDS_QUERY=1 python -c "import tensorflow as tf, libtpu; print(float(tf.reduce_sum(tf.fill([6, 7], 1.0))))"
  inside rookery --help
  inside rookery train --help
}

use_beam() {
  same "[/opt/apache/beam/boot]" run "${b[@]}" inspect --format '{{.Docker.Config.Entrypoint}}' proof
  same "2.77.0" inside python -c "import apache_beam, apache_beam.runners.worker.sdk_worker_main, pipeline.shard, inference.predict; print(apache_beam.__version__)"
  same "there" inside python -c "import google.cloud.dataflow_v1beta3, apache_beam.io.gcp.gcsio; print('there')"
  inside rookery --help
}

run install --directory --owner 4321 --group 4321 "$scratch/data/out"
timed "Debian by debootstrap" make_debian
for target in "${targets[@]}"; do
  case $target in
    cpu | tpu) timed "base of $target" make_base PYTHON_IMAGE --cmd python3 ;;
    # Where the base keeps its boot program; a placeholder, as the program is not to be had outside its image.
    beam)
      run install -D /bin/true "$scratch/debian/opt/apache/beam/boot"
      timed "base of $target" make_base BEAM_IMAGE --entrypoint '["/opt/apache/beam/boot"]'
      # The wheel of Rookery is made on the other base.
      timed "base of its wheel" make_base PYTHON_IMAGE --cmd python3
      ;;
  esac
  timed "build of $target" make_image "$target"
  run du -sh "$scratch/storage"
  [ "$target" != cpu ] || timed "sample survey" fetch_sample
  timed "use of $target" "use_$target"
  drop_image "$target"
done
say "Done"
printf '%s\n' "${times[@]}"
