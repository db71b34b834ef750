"""The TPU RetinaNet's --hparams become our flags."""

import pytest

from survey import flags
from survey.errors import InputError
from tpu_train import hparams, train

KNOWN = flags.names(train.Options)


def test_each_pair_becomes_a_flag_in_its_place():
    argv = ["--dataset=d", "--hparams=image_size=640,num_classes=9,train_batch_size=64,resnet_depth=50", "--steps=10"]
    flags_ = ["--image_size=640", "--num_classes=9", "--batch_size=64", "--backbone=resnet50"]
    assert hparams.expanded(argv, KNOWN) == ["--dataset=d", *flags_, "--steps=10"]
    assert hparams.expanded(["--hparams", "steps=3"], KNOWN) == ["--steps=3"]
    assert hparams.expanded(["--hparams="], KNOWN) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hparams=image_size"], r"--hparams=image_size: 'image_size' is not name=value; write for example"),
        (["--hparams=imagesize=640"], r"'imagesize' is not known: did you mean 'image_size'\? .* --params_override"),
        (["--image_size=416", "--hparams=image_size=640"], r"gives image_size=640, and --image_size is given too"),
        (["--hparams=batch_size=8,train_batch_size=16"], r"gives train_batch_size=16, and --batch_size is given too"),
    ],
)
def test_what_is_refused(argv, message):
    with pytest.raises(InputError, match=message):
        hparams.expanded(argv, KNOWN)


def test_the_verb_takes_them():
    with pytest.raises(InputError, match="--batch_size=0: must be above 0"):
        train.run(["--dataset=d", "--model_dir=m", "--hparams=train_batch_size=0"])
