#!/usr/bin/env bash
# From two real orthomosaics to a trained detector, a count and a map: the whole job of Rookery on a laptop's CPU.
# usage: ./scripts/quickstart.sh [FOLDER]     default: runs/quickstart; run it again to go on where it stopped
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
run=${1:-runs/quickstart}
began=$SECONDS

environment base
export PATH="$PWD/.venv/bin:$PATH"

say "Sample survey: two airborne mosaics of a forest in Yellowstone (NEON, 0.1 m a pixel), with every tree boxed by hand"
sample="$run/sample"
if [ ! -d "$sample/deepforest" ]; then
  python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/sample.txt -d "$sample"
  python -m zipfile -e "$sample"/deepforest-*.whl "$sample"
fi
known="$sample/deepforest/data/2019_YELL_2_528000_4978000_image_crop2"
unseen="$sample/deepforest/data/2019_YELL_2_541000_4977000_image_crop"

say "Shard: cut the first mosaic into overlapping patches"
rookery shard --mosaics "$known.png" --annotations "$known.xml" --annotation_format voc \
  --patch_size 416 --overlap 208 --split train=0.8,val=0.2 --output "$run/dataset"

say "Train: RetinaNet on an EfficientNet-Lite0 that has seen ImageNet"
rookery train --dataset "$run/dataset" --model retinanet --model_dir "$run/training" \
  --config tpu_train/configs/retinanet_lite0_cpu.yaml --image_size 256 --steps 500 --validate_every 100

say "Export: SavedModel and model.json"
rookery export --model_dir "$run/training" --output "$run/model"

say "Predict: the second mosaic, which training never saw"
rookery predict --model "$run/model" --mosaics "$unseen.png" --output "$run/detections"

say "Evaluate: against the trees that people found there"
rookery evaluate --detections "$run/detections" --annotations "$unseen.xml" --iou 0.4,0.5

say "Count: how many trees, and between which numbers, without a single tree labelled there"
rookery count --detections "$run/detections"

say "Report: one page to look at"
rookery report --detections "$run/detections" --output "$run/report.html"
say "Done in $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"
