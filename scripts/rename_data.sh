#!/usr/bin/env bash
# For those who come from the seafloor project: renaming is not needed here. Prints why, and touches nothing.
#
#   ./scripts/rename_data.sh -a ANNOTATIONS -i IMAGES
#
# There, training died with "StringToNumberOp could not correctly convert string" unless every image was called by a number, so
# rename_data.sh renamed images and rewrote their XML. Here it only tells what to do instead.
#
#   --dry_run   the same
#   --help      this text
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
arguments "$@"
cat <<'TEXT'
Nothing was renamed, and nothing needs to be.
  - Training wants a number for each image. `rookery shard` gives every patch one by construction: first_patch_id of its mosaic
    + row * columns + column. It is in image/source_id and image/patch_id of each record, and patches.parquet leads back from it
    to the mosaic, its pixels and its digest.
  - Mosaics and annotations keep their names. Rookery never modifies originals.
  - train.txt and test.txt are not needed either: `rookery shard --split train=0.8,val=0.2`, or --split_list FILE.csv for your own.
next: ./scripts/1_make_records.sh --mosaics 'IMAGES/*' --annotations 'ANNOTATIONS/*.xml' --output dataset
TEXT
