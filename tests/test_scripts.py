"""The scripts: their help, what they would run, what they refuse, and two of them run for real on small surveys."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import rookery
from survey import flags
from survey.errors import InputError
from tpu_train import hparams, retina_train

ROOT = Path(__file__).parent.parent
OURS = ("1_make_records", "3_export", "4_survey", "rename_data", "generate_labels", "retina_train")
BEAM_VERBS = ("shard", "predict")
PLACE = {
    "RUNNER": "dataflow",
    "PROJECT": "seal-survey",
    "REGION": "us-west4",
    "BUCKET": "seals",
    "IMAGE": "us-west4-docker.pkg.dev/seal-survey/rookery/beam:1",
}
BEAM = (
    "--runner DataflowRunner --project seal-survey --region us-west4 --temp_location gs://seals/tmp "
    "--sdk_container_image us-west4-docker.pkg.dev/seal-survey/rookery/beam:1 --sdk_location container"
)


def script(name: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script from another folder, with only the given variables of ours."""
    clean = {
        name: value for name, value in os.environ.items() if name not in (*PLACE, "ANNOTATIONS", "DRY_RUN", "SERVICE_ACCOUNT")
    }
    clean["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    command = ["bash", str(ROOT / f"scripts/{name}.sh"), *argv]
    return subprocess.run(command, cwd="/", env={**clean, **environment}, capture_output=True, text=True, check=False)


def planned(name: str, *argv: str, **environment: str) -> list[str]:
    """The commands that a dry run prints; every `rookery` among them parses."""
    done = script(name, *argv, "--dry_run", **environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in lines:
        if line.startswith("rookery "):
            _, verb, *rest = shlex.split(line)
            module = import_module(rookery.VERBS[verb])
            flags.parse(module.Options, rest, prog=verb, passthrough=verb in BEAM_VERBS)
    return lines


@pytest.mark.parametrize("name", OURS)
def test_help(name: str) -> None:
    """Says what it is for and how to call it, without an environment of ours."""
    done = script(name, "--help", PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert f"./scripts/{name}.sh " in done.stdout
    assert "--dry_run" in done.stdout
    assert "shellcheck" not in done.stdout


def test_records_here() -> None:
    assert planned("1_make_records", "--mosaics", "a b/*.tif", "--annotations=x/*.xml", "--output=ds/", "--patch_size", "96") == [
        r"rookery shard --mosaics a\ b/\*.tif --annotations=x/\*.xml --output=ds/ --patch_size 96",
        "rookery doctor --dataset ds/ --output ds_doctor.html",
    ]


RECORDS = ("--mosaics=gs://seals/*.tif", "--annotations=gs://seals/*.xml", "--output=gs://seals/ds")


def test_records_on_dataflow() -> None:
    """The bucket is looked at first; the launch request is printed where Beam's packages are, as comment and JSON."""
    account = "rookery@seal-survey.iam.gserviceaccount.com"
    lines = planned("1_make_records", *RECORDS, "--max_num_workers=8", **PLACE, SERVICE_ACCOUNT=account)
    quoted = " ".join(RECORDS).replace("*", r"\*")
    assert lines[:2] == [
        "python -m cloud.buckets gs://seals gs://seals/ds --region us-west4",
        f"rookery shard {quoted} --max_num_workers=8 {BEAM} --service_account_email {account}",
    ]
    assert lines[2].startswith("# the launch request")
    assert lines[-1] == "rookery doctor --dataset gs://seals/ds --output gs://seals/ds_doctor.html"
    if len(lines) > 4:
        request = json.loads("\n".join(lines[3:-1]))
        assert request["location"] == "us-west4"
        assert request["job"]["environment"]["serviceAccountEmail"] == account


@pytest.mark.parametrize(
    ("name", "change", "argv", "words"),
    [
        ("1_make_records", {"PROJECT": ""}, RECORDS, "PROJECT: the ID of the project that pays"),
        ("1_make_records", {"REGION": ""}, RECORDS, "REGION: where the workers run"),
        ("4_survey", {"BUCKET": ""}, ("--output=gs://seals/out",), "BUCKET: the bucket that takes the temporary files"),
        ("4_survey", {"IMAGE": ""}, ("--output=gs://seals/out",), "IMAGE: the image of the workers"),
        ("1_make_records", {"RUNNER": "spark"}, RECORDS, "RUNNER=spark: must be local, for this machine, or dataflow"),
        ("1_make_records", {}, ("--output=here",), "--output=here: the workers of Dataflow cannot see it"),
        ("1_make_records", {}, ("--mosaics=x",), "--output is missing: name the folder of the dataset"),
        ("4_survey", {}, ("--model=x",), "--output is missing: name the folder for the detections"),
        ("3_export", {}, ("--output=x",), "--model_dir is missing: name the folder that"),
        ("3_export", {}, ("--model_dir=x",), "--output is missing: name a new folder for the model"),
        ("generate_labels", {}, (), "-d is missing: name the folder with the annotations"),
        ("generate_labels", {}, ("-d",), "-d is given without a folder"),
        ("generate_labels", {}, ("-d", "x", "-r"), "-r is not a flag of generate_labels.sh"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_refusals(name: str, change: dict[str, str], argv: Sequence[str], words: str, dry: Sequence[str]) -> None:
    """With exit code 2, before anything is run."""
    done = script(name, *argv, *dry, **{**PLACE, **change})
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert words in done.stderr


def test_export() -> None:
    assert planned("3_export", "--model_dir", "gs://seals/run", "--output", "gs://seals/model", "--nms_iou=0.4") == [
        "rookery export --model_dir gs://seals/run --output gs://seals/model --nms_iou=0.4"
    ]


def test_survey_here_and_on_dataflow() -> None:
    """The last --output counts, as for the verb. Only the prediction leaves this machine."""
    argv = ("--model=gs://seals/m", "--mosaics=gs://seals/*.tif", "--output", "gs://seals/x", "--output", "gs://seals/out")
    ours = r"--model=gs://seals/m --mosaics=gs://seals/\*.tif --output gs://seals/x --output gs://seals/out"
    after = [
        "rookery count --detections gs://seals/out",
        "rookery report --detections gs://seals/out --output gs://seals/out/report.html",
    ]
    judged = r"rookery evaluate --detections gs://seals/out --annotations gs://seals/\*.json --annotation_format coco"
    assert planned("4_survey", *argv) == [f"rookery predict {ours}", *after]
    with_truth = planned("4_survey", *argv, ANNOTATIONS="gs://seals/*.json", ANNOTATION_FORMAT="coco")
    assert with_truth == [f"rookery predict {ours}", after[0], judged, after[1]]
    where = "python -m cloud.buckets gs://seals gs://seals/out --region us-west4"
    assert planned("4_survey", *argv, **PLACE) == [where, f"rookery predict {ours} {BEAM}", *after]


def test_a_bucket_may_be_given_by_its_address() -> None:
    assert (
        planned("1_make_records", *RECORDS, **{**PLACE, "BUCKET": "gs://seals/any"})[:2]
        == planned("1_make_records", *RECORDS, **PLACE)[:2]
    )


def test_labels_of_the_seafloor_project(tmp_path: Path, write_voc: Callable[..., str]) -> None:
    wanted = rf"rookery labels --annotations {tmp_path}/\*.xml --output {tmp_path}/label.pbtxt"
    given = ("-d", f"{tmp_path}/", "-s", str(tmp_path))
    assert planned("generate_labels", *given) == [wanted]
    assert planned("generate_labels", "-d", "xml", "--annotation_format=voc") == [
        r"rookery labels --annotations xml/\*.xml --output ./label.pbtxt --annotation_format=voc"
    ]
    write_voc(tmp_path / "7.xml", "7.jpg", (50, 50), [("Elpidia", (1, 1, 9, 9)), ("benthocodon", (20, 20, 30, 30))])
    done = script("generate_labels", *given)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"name: ['\"](.*)['\"]", (tmp_path / "label.pbtxt").read_text()) == ["Elpidia", "benthocodon"]


def test_nothing_is_renamed(tmp_path: Path) -> None:
    (tmp_path / "STAM_12p.JPG").write_bytes(b"pixels")
    done = script("rename_data", "-a", str(tmp_path), "-i", str(tmp_path))
    assert done.returncode == 0
    assert "Nothing was renamed, and nothing needs to be." in done.stdout
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("STAM_12p.JPG", b"pixels")]


# As the seafloor project's own retina_train.sh calls it; the number of steps is 15 * 5000 / 32 = 2343.75.
SEAFLOOR = [
    "--tpu=seals",
    "--train_batch_size=32",
    "--training_file_pattern=gs://seals/ds/train-*",
    "--resnet_checkpoint=gs://cloud-tpu/resnet/model.ckpt-112602",
    "--model_dir=gs://seals/retinanet-model",
    "--hparams=image_size=640,num_classes=9",
    "--num_examples_per_epoch=5000",
    "--num_epochs=15",
]


def test_training_of_the_seafloor_project_on_a_tpu() -> None:
    more = ["--accelerator=v5litepod-8", "--tpu_zone=us-west4-a", "--gcp_project=seal-survey", "--dry_run", "--", "--spot"]
    done = script("retina_train", *SEAFLOOR, *more)
    assert done.returncode == 0, done.stderr
    *environment, command = done.stdout.split("./scripts/2_train_tpu.sh ")
    assert environment == ["ZONE=us-west4-a PROJECT=seal-survey "]
    assert set(shlex.split(command)) == {
        "--name=seals",
        "--accelerator=v5litepod-8",
        "--dataset=gs://seals/ds",
        "--train_split=train",
        "--model_dir=gs://seals/retinanet-model",
        "--batch_size=32",
        "--steps=2343",
        "--hparams=image_size=640,num_classes=9",
        "--spot",
    }
    assert "note: --resnet_checkpoint=gs://cloud-tpu/resnet/model.ckpt-112602 is dropped" in done.stderr


def mapped(*argv: str) -> list[str]:
    options, _ = flags.parse(retina_train.Options, argv, prog="retina_train.sh")
    return retina_train.command(options)[0]


def test_training_here_is_a_command_that_train_takes() -> None:
    from tpu_train import options

    given = [
        "--model_dir=run",
        "--training_file_pattern=ds/learn-*",
        "--validation_file_pattern=ds/judge-00000-of-00001.tfrecord",
    ]
    more = ["--num_epochs=2.5", "--iterations_per_loop=50", "--config_file=a.yaml"]
    more += ["--num_classes=3", "--use_tpu=True"]
    first, verb, *argv = mapped(*given, *more)
    assert (first, verb) == ("rookery", "train")
    taken, _ = flags.parse(options.Options, hparams.expanded(argv, flags.names(options.Options)), prog="rookery train")
    assert (taken.dataset, taken.train_split, taken.val_split, taken.model_dir) == ("ds", "learn", "judge", "run")
    assert (taken.epochs, taken.steps_per_loop, taken.config, taken.num_classes) == (2.5, 50, "a.yaml", 3)


def test_every_flag_of_the_old_script_has_its_place() -> None:
    """What becomes of each is written once; a flag that the mapping forgot would be dropped without a word."""
    handled = {*retina_train.SAME, *retina_train.RENAMED, *retina_train.DROPPED}
    special = {
        "training_file_pattern",
        "validation_file_pattern",
        "dataset",
        "tpu",
        "tpu_name",
        "tpu_zone",
        "gcp_project",
        "master",
    }
    special |= {"mode", "num_epochs", "num_examples_per_epoch", "dry_run"}
    assert handled | special == set(flags.names(retina_train.Options))
    assert not handled & special


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--training_file_patern=x"], r"--training_file_patern is not a flag .* did you mean --training_file_pattern\?"),
        (["--train_batchsize=8"], r"did you mean --train_batch_size\?"),
        (["--training_file_pattern=all.record", "--model_dir=r"], "must be DATASET/SPLIT-\\*"),
        (["--training_file_pattern=d/train-*", "--model_dir=r", "--validation_file_pattern=e/val-*"], "of the same dataset, d"),
        (["--training_file_pattern=d/train-*", "--model_dir=r", "--tpu=grpc://10.0.0.2:8470"], "not reached by its address"),
        (["--training_file_pattern=d/train-*", "--model_dir=r", "--tpu=seals"], "such as --accelerator v5litepod-8"),
        (["--training_file_pattern=d/train-*", "--model_dir=r", "--mode=eval"], "rookery evaluate"),
        (["--training_file_pattern=d/train-*", "--model_dir=r", "--total_steps=9", "--num_epochs=1"], "drop one"),
    ],
)
def test_old_flags_that_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        retina_train.run([*argv, "--dry_run"])


@pytest.fixture
def survey(tmp_path: Path, write_raster: Callable[..., str], write_voc: Callable[..., str]) -> Path:
    """Two mosaics of 16 squares, in two places."""
    import rasterio

    rng = np.random.default_rng(0)
    for number, name in enumerate(("one", "two")):
        image = rng.integers(20, 60, (200, 200, 3)).astype(np.uint8)
        boxes = [(y, x, y + 16 + x // 40, x + 20 + y // 40) for y in range(6, 166, 40) for x in range(6, 166, 40)]
        for y0, x0, y1, x1 in boxes:
            image[y0:y1, x0:x1] = rng.integers(180, 255, 3)
        place = rasterio.Affine(0.1, 0, 5e5 + 100 * number, 0, -0.1, 4e6)
        write_raster(tmp_path / f"{name}.tif", image, driver="GTiff", crs="EPSG:32617", transform=place)
        write_voc(tmp_path / f"{name}.xml", f"{name}.tif", (200, 200), [("square", box) for box in boxes])
    return tmp_path


def test_records_for_real(survey: Path) -> None:
    """Both steps run. A mosaic that is no image stops the script before the doctor, with the verb's own code, and it says so."""
    split = ("--patch_size=64", "--overlap=16", "--split=train=0.5,val=0.5")
    inputs = (f"--mosaics={survey}/*.tif", f"--annotations={survey}/*.xml")
    done = script("1_make_records", *inputs, f"--output={survey}/ds", *split)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (survey / "ds/dataset.json").exists()
    assert "square" in (survey / "ds_doctor.html").read_text()

    (survey / "three.tif").write_text("no image")
    done = script("1_make_records", *inputs, f"--output={survey}/other", *split)
    assert done.returncode == 2
    assert "three" in done.stderr
    assert f"stopped: no dataset yet. Finished shards are kept in {survey}/other" in done.stderr
    assert "rookery doctor" not in done.stdout


def test_survey_for_real(tmp_path: Path, write_voc: Callable[..., str]) -> None:
    """All four steps: three painted objects are found, counted, judged and shown."""
    import stub_model
    from test_inference_count import VALIDATION
    from test_inference_predict import save

    model = stub_model.export(str(tmp_path / "model"), calibration=((0.4, 0.2), (0.8, 0.9)), validation=VALIDATION)
    objects = [(20, 20, 10, 0.8, 1), (30, 55, 12, 0.6, 1), (120, 100, 12, 0.9, 2)]
    save(tmp_path / "north.png", stub_model.paint(150, 150, objects))
    boxes = [("bird", (15, 15, 26, 26)), ("bird", (24, 49, 36, 61)), ("tree", (114, 94, 126, 106))]
    write_voc(tmp_path / "north.xml", "north.png", (150, 150), boxes)
    argv = (f"--model={model}", f"--mosaics={tmp_path}/north.png", f"--output={tmp_path}/out", "--formats=csv")
    done = script("4_survey", *argv, ANNOTATIONS=f"{tmp_path}/*.xml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "counted 3 objects, people marked 3" in done.stdout
    assert {"estimates.json", "evaluation.json", "report.html"} <= {path.name for path in (tmp_path / "out").iterdir()}


def gcloud_lines() -> list[str]:
    """Every gcloud line of the pages and the scripts, with values in the place of variables."""
    found = []
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("scripts/*.sh"))]:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        blocks = [text] if path.suffix == ".sh" else re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        lines = [line.strip().removeprefix("run ") for block in blocks for line in block.splitlines()]
        found += [line for line in lines if line.startswith("gcloud ")]
    values = {"PROJECT": "seal-survey", "REGION": "us-west4", "ZONE": "us-west4-a", "BUCKET": "seal-survey-data"}
    found = [re.sub(r"\$\([^)]*\)", "x", line) for line in found]
    return [re.sub(r"\$(\w+)", lambda name: values.get(name[1], name[1].lower()), line) for line in found]


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed: its lines cannot be judged")
def test_gcloud_takes_every_line(tmp_path: Path) -> None:
    """By gcloud's own parser, offline. It must see that a flag is wrong, or the test would prove nothing."""
    lines = gcloud_lines()
    assert len(lines) > 30
    wrong = "gcloud storage buckets create gs://seals --locations=us-west4"
    commands = [
        {"command_string": line, "id": str(number)} for number, line in enumerate(dict.fromkeys([*lines, wrong]), start=1)
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path}/commands.json"],
        env={
            **os.environ,
            "CLOUDSDK_CONFIG": str(tmp_path),
            "CLOUDSDK_CORE_PROJECT": "seal-survey",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    refused = {one["command_string"]: one["error_message"] for one in json.loads(done.stdout) if not one["success"]}
    assert refused.pop(wrong, "").startswith("unrecognized arguments")
    assert refused == {}
    assert len(json.loads(done.stdout)) == len(commands)


def pins(name: str) -> dict[str, str]:
    """Package to version and hashes, of a locked set."""
    text = re.sub(r"(?m)^ *#.*\n", "", (ROOT / f"requirements/{name}.txt").read_text())
    return dict(re.findall(r"(?m)^([\w.\[\],-]+)(==.*(?:\n    .*)*)", text))


def test_what_the_environment_of_the_tests_will_do_for(tmp_path: Path) -> None:
    """It has all of base, so that a script after the tests installs nothing; base does not do for the tests."""
    base, dev = pins("base"), pins("dev")
    assert len(base) > 100
    assert base.items() <= dev.items()
    for name in ("scripts/common.sh", "requirements/base.txt", "requirements/dev.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()

    def asked(have: str, want: str) -> str:
        """What is said; a Python that makes nothing, or the test would install for minutes."""
        digest = f"cd {tmp_path} && digest_of requirements/{have}.txt >.venv/lock.sha256"
        lines = f"source {tmp_path}/scripts/common.sh && {digest} && python3.11() {{ :; }} && environment {want}"
        return subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False).stdout

    assert asked("base", "base") == asked("dev", "dev") == asked("dev", "base") == ""
    assert "Environment: .venv from requirements/dev.txt" in asked("base", "dev")
