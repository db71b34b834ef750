"""`--hparams=image_size=640,num_classes=9`, the habit of the TPU RetinaNet (tensorflow/tpu), as our flags."""

from collections.abc import Iterator, Sequence

from survey import flags
from survey.errors import InputError

# Names of tensorflow/tpu's models/official/retinanet/retinanet_model.py that are called otherwise here.
OTHERWISE = {"train_batch_size": "batch_size", "anchor_scale": "anchor_size"}
FLAG = "--hparams"


def expanded(argv: Sequence[str], known: Sequence[str]) -> list[str]:
    """The command line with the flags that --hparams stands for in its place.

    Args:
      argv: the arguments.
      known: names of all flags, without dashes.

    Raises:
      InputError: a part that is not name=value, a name that is no flag, or one that is given twice.
    """
    result, given = [], {argument.split("=")[0].removeprefix("--") for argument in argv if argument.startswith("--")}
    waiting = iter(argv)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name != FLAG:
            result.append(argument)
            continue
        for key, content in _pairs(value if equals else next(waiting, "")):
            flag = _flag(key, known)
            if flag in given:
                raise InputError(f"{FLAG} gives {key}={content}, and --{flag} is given too: leave one out")
            given.add(flag)
            result.append(f"--{flag}={'resnet' if key == 'resnet_depth' else ''}{content}")
    return result


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise InputError(f"{FLAG}={text}: {part!r} is not name=value; write for example {FLAG}=image_size=640,num_classes=9")
        yield key.strip(), value.strip()


def _flag(key: str, known: Sequence[str]) -> str:
    if key == "resnet_depth":
        return "backbone"
    flag = OTHERWISE.get(key, key)
    if flag not in known:
        near = flags.nearest(flag, known)
        raise InputError(f"{FLAG}: {key!r} is not known: did you mean {near!r}? Whatever has no flag goes into --params_override")
    return flag
