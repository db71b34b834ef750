"""The `rookery` command: one dict of verb -> module, imported only when its verb is called."""

import importlib
import sys
from collections.abc import Sequence

from survey import flags
from survey.errors import InputError

VERBS = {
    "labels": "pipeline.labels",
    "shard": "pipeline.shard",
    "doctor": "tpu_train.doctor",
    "show-batch": "tpu_train.show_batch",
    "anchors": "tpu_train.anchors_verb",
    "preflight": "tpu_train.preflight.verb",
    "train": "tpu_train.train",
    "export": "tpu_train.export",
    "predict": "inference.predict",
    "decode": "inference.decode_verb",
    "convert": "inference.convert",
    "count": "inference.count",
    "evaluate": "inference.evaluate",
    "report": "inference.report",
}

HELP = """usage: rookery VERB [--flag=value ...]

From survey mosaics to counts a scientist can publish.

  labels     annotations -> label map
  shard      mosaics + annotations -> dataset of TFRecord shards
  doctor     dataset -> is it fit to train? (terminal and one HTML page)
  show-batch dataset -> a picture of what training sees
  anchors    dataset or table of boxes -> anchors for a YOLO, with a picture
  preflight  will it run on that TPU, fit, and how fast? Without the TPU
  train      dataset -> checkpoints
  export     checkpoints -> model (SavedModel + model.json)
  predict    model + mosaics -> detections
  decode     a model's raw outputs -> boxes
  convert    detections -> tables, maps, labels to correct, densities, crops
  count      detections (+ a labelled sample) -> counts with confidence intervals
  evaluate   detections + annotations -> metrics
  report     detections (+ metrics) -> one HTML page

`rookery VERB --help` lists the flags of a verb."""


def main() -> None:
    """Runs one verb and exits with its code."""
    verb, *argv = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(HELP)
        sys.exit(0)
    flags.exit_with(lambda rest: _run(verb, rest), argv)


def _run(verb: str, argv: Sequence[str]) -> int:
    if verb not in VERBS:
        near = flags.nearest(verb, VERBS)
        raise InputError(f"{verb!r} is not a verb of rookery: did you mean {near!r}? Known: {', '.join(VERBS)}")
    code: int = importlib.import_module(VERBS[verb]).run(argv)
    return code


if __name__ == "__main__":
    main()
