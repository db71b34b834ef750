import errno
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from survey import flags
from survey.errors import InputError


@dataclass(frozen=True, slots=True)
class Options:
    """What this verb does.

    More of it.
    """

    output: str = flags.flag("where to")
    patch_size: int = flags.flag("side in pixels, 50% of a tree", default=416)
    split: tuple[str, ...] = flags.flag("shares", default=("train=0.8", "val=0.2"))
    ious: tuple[float, ...] = flags.flag("thresholds", default=(0.5,))
    label_map: str | None = flags.flag("labels", default=None)
    limit: int | None = flags.flag("most", default=None)
    resume: bool = flags.flag("go on", default=True)
    kind: str = flags.flag("which", default="voc", choices=["voc", "coco"])

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise InputError(f"patch_size={self.patch_size}")


def parse(*argv, **more):
    return flags.parse(Options, argv, prog="rookery verb", **more)


def test_defaults_and_types():
    options, rest = parse("--output", "x", "--split", "train=1", "--ious=0.4,0.5", "--no-resume", "--limit=3", "--kind=coco")
    assert options == Options("x", split=("train=1",), ious=(0.4, 0.5), resume=False, limit=3, kind="coco")
    assert rest == []
    assert parse("--output=x")[0] == Options("x")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--output=x", "--patchsize=3"], r"--patchsize is not a flag of rookery verb: did you mean --patch_size\?"),
        (["--output=x", "--patch-size=3"], r"did you mean --patch_size\?"),
        (["--output=x", "--patch_s=3"], r"did you mean --patch_size\?"),  # abbreviations would break when a flag is added
        (["--output=x", "stray"], r"takes flags only, found 'stray'"),
        (["--output=x", "--patch_size=big"], "--patch_size: invalid whole number value: 'big'"),
        (["--output=x", "--ious=a"], "--ious: invalid list of float value: 'a'"),
        (["--output=x", "--kind=xml"], "invalid choice: 'xml'"),
        (["--output=x", "--patch_size=0"], "patch_size=0"),
        ([], "required: --output"),
    ],
)
def test_what_is_wrong_is_named(argv, words):
    with pytest.raises(InputError, match=words):
        parse(*argv)


def test_passthrough_hands_back_what_it_does_not_know():
    options, rest = parse("--output=x", "--runner=Direct", "--direct_num_workers", "2", passthrough=True)
    assert options.output == "x"
    assert rest == ["--runner=Direct", "--direct_num_workers", "2"]


def test_help_shows_defaults_and_a_tidy_description(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "(default train=0.8,val=0.2)" in text
    assert "50% of a tree" in text
    assert "\n\nMore of it.\n" in text


def test_exit_codes(capsys):
    def refuse(_):
        raise InputError("--x=1: must be 2")

    for run, code in ((refuse, 2), (lambda _: 0, 0), (lambda _: 3, 3)):
        with pytest.raises(SystemExit) as end:
            flags.exit_with(run, [])
        assert end.value.code == code
    assert capsys.readouterr().err == "error: --x=1: must be 2\n"


def test_unknown_verb_names_the_nearest():
    done = subprocess.run([sys.executable, "-m", "rookery", "shart"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'shard'?" in done.stderr


@pytest.mark.parametrize("path", ["/survey/parts", None])
def test_a_full_disk_is_one_line(path, capsys):
    def run(argv):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with pytest.raises(SystemExit) as end:
        flags.exit_with(run, [])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("error: No space left on device")
    assert said.count("\n") == 1
    assert (path or "device:") in said


def test_another_error_of_the_system_is_not_hidden():
    def run(argv):
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        flags.exit_with(run, [])
