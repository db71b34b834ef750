#!/usr/bin/env bash
# For those who come from the seafloor project: flags of the TPU RetinaNet's retinanet_main.py, as ours. --help lists each of them.
#
#   ./scripts/retina_train.sh --training_file_pattern 'dataset/train-*' --model_dir run --hparams image_size=640 --num_epochs 15
#   PROJECT=p ZONE=z IMAGE=i ./scripts/retina_train.sh --tpu seals --accelerator v5litepod-8 --training_file_pattern 'gs://b/dataset/train-*' ...
#
# Without --tpu it is `rookery train` on this machine, with it 2_train_tpu.sh, which makes the TPU and deletes it. Prints the
# command first; --dry_run only prints it. What stands behind a lone -- is handed to it as it is.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
: "${1:?say what to train on: --training_file_pattern and --model_dir, or --help}"

case " $* " in
  *" --help "* | *" -h "* | *" --dry_run "*) ;; # nothing is to be installed to look
  *) at_hand base ;;
esac
exec python3 -m tpu_train.retina_train "$@"
