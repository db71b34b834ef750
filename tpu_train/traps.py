"""The traps of Model Garden, and which of them a dataset can spring: what the page of `rookery doctor` says of each.

Line numbers are of tf-models-official 2.20, below `official/`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trap:
    """One of them.

    Attributes:
      number: as checks name it.
      what: goes wrong.
      data: whether a dataset can spring it.
      answer: what the doctor or the rest of Rookery does about it.
    """

    number: int
    what: str
    data: bool
    answer: str


TRAPS = (
    Trap(1, "image/source_id that is no decimal number ends the run; an empty one is hashed into 2²² buckets and collides "
         "(vision/dataloaders/utils.py:33)", True, "every ID is read"),
    Trap(2, "num_classes is off by one: RetinaNet counts the background, YOLO does not", True,
         "labels and names are compared with the label map; `rookery train` adds the background itself"),
    Trap(3, "YOLO's simple_decoder.coco91_to_80 is on by default: it reads your labels as COCO's 91, renumbers them from 0 and "
         "drops those that COCO lacks (projects/yolo/configs/yolo.py:67)", True,
         "any dataset that is not COCO springs it; `rookery train` reads labels as they are, with another trainer set "
         "coco91_to_80=false"),
    Trap(4, "caps on objects per patch, 100 to 300, cut dense patches silently; max_num_eval_detections other "
         "than 100 makes COCO AP −1", True,
         "objects are counted against every cap; `rookery train` takes its caps from the dataset"),
    Trap(5, "YOLO's ignore mask visits n // 50 − 1 tiles of boxes (projects/yolo/ops/loss_utils.py:334)", True,
         "counted as a cap, and the remedy names a multiple of 50 with 50 to spare; `rookery train` searches every object"),
    Trap(6, "YOLO's loss fails on a CPU without XLA (−1 padding in scatter indices)", False,
         "`rookery train` has a loss of its own, with the same values"),
    Trap(7, "YOLO's default nms_version does not compile in XLA", False, "`rookery train` takes 'v2', which does"),
    Trap(8, "YOLO's iou_thresh is a score threshold; ScaledLoss multiplies the class loss by classes / 80", False,
         "about models; `rookery export` sets both by their meaning"),
    Trap(9, "RetinaNet pads pictures to 2^max_level, and its smallest default anchor is 32 px", True,
         "patch size and box sizes are checked; anchors and levels are fitted to the boxes"),
    Trap(10, "tf.keras is Keras 3 beside Model Garden's tf_keras", False, "about software"),
    Trap(11, "boxes that overflow the picture are dropped by its converters; validation drops the last, partial batch", True,
         "every box is checked; `rookery train` fills the last batch with blank pictures"),
    Trap(12, "raw heads and decoded ones export differently per model", False, "about export"),
    Trap(13, "the position in the data is not saved: a restart repeats the same order", False, "about runs"),
    Trap(14, "distribute_utils names a class that TensorFlow lacks", False, "about software"),
    Trap(15, "other backbones, decoders and tasks must be registered", False, "about models"),
)  # fmt: skip
