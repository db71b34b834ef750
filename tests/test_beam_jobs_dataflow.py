"""Options for Dataflow: handed on, and what it would refuse is refused here. Nothing is submitted."""

import json

import pytest

from beam_jobs import quiet
from pipeline import shard
from survey.errors import InputError

with quiet.importing():
    from beam_jobs import dataflow, launch

DATAFLOW = [
    "--runner=DataflowRunner",
    "--project=seal-survey",
    "--region=europe-west4",
    "--temp_location=gs://seals/tmp",
    "--sdk_container_image=europe-west4-docker.pkg.dev/seal-survey/rookery/beam:1",
    "--num_workers=4",
    "--max_num_workers=8",
    "--machine_type=n2-standard-4",
    "--dataflow_service_options=enable_prime",
]


def test_options_of_dataflow_pass_through(monkeypatch):
    monkeypatch.setattr(dataflow, "installed", lambda: True)
    chosen = launch.options(DATAFLOW, ["mosaics"], prog="rookery shard").get_all_options()
    assert (chosen["project"], chosen["num_workers"], chosen["machine_type"]) == ("seal-survey", 4, "n2-standard-4")
    assert chosen["dataflow_service_options"] == ["enable_prime"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--project=", "--project is missing"),
        ("--project=123", r"Invalid Project ID \(123\)"),
        ("--region=", "--region is missing: the one of your bucket"),
        ("--temp_location=", "--temp_location is missing"),
        ("--temp_location=/tmp", r"Invalid GCS path \(/tmp\), given for the option: temp_location"),
        ("--sdk_container_image=", "--sdk_container_image is missing: workers need Rookery"),
        ("--num_workers=0", r"Invalid value \(0\) for option: num_workers"),
        ("--num_workers=9", r"num_workers \(9\) cannot exceed max_num_workers \(8\)"),
        ("--job_name=Seals_2024", "Invalid job_name"),
        ("--machine_typ=n1", "did you mean --machine_type"),
    ],
)
def test_options_that_dataflow_would_refuse(monkeypatch, change, words):
    monkeypatch.setattr(dataflow, "installed", lambda: True)
    with pytest.raises(InputError, match=words):
        launch.options([*DATAFLOW, change], ["mosaics"], prog="rookery shard")


def test_dataflow_needs_its_packages(monkeypatch):
    monkeypatch.setattr(dataflow, "installed", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'rookery\[gcp\]'"):
        launch.options(DATAFLOW, [], prog="rookery shard")


@pytest.mark.parametrize("flag", ["mosaics", "output"])
def test_dataflow_cannot_see_this_machine(monkeypatch, flag):
    monkeypatch.setattr(dataflow, "installed", lambda: True)
    where = {name: f"gs://seals/{name}" for name in ("mosaics", "output")} | {flag: "here"}
    argv = [f"--{name}={path}" for name, path in where.items()]
    with pytest.raises(InputError, match=f"^--{flag}=here: workers of Dataflow cannot see it; copy it with gcloud storage cp"):
        shard.run([*argv, "--annotations=a/*.xml", *DATAFLOW])


def test_other_runners_may_see_this_machine():
    dataflow.refuse_local(launch.options([], [], prog="rookery shard"), {"output": "here"})


@pytest.mark.parametrize("flag", ["--dry_run", "--dry_run=True"])
def test_a_dry_run_is_refused_where_beam_would_run_the_job(flag):
    with pytest.raises(InputError, match="--dry_run: shows the request to Dataflow, and goes with --runner DataflowRunner"):
        launch.options([flag], [], prog="rookery shard")


@pytest.fixture
def _no_network(monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("the request is made without asking anybody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
def test_the_launch_request(capsys):
    """By Beam's own Dataflow runner; names and places as https://cloud.google.com/dataflow/docs/reference/rest has them."""
    pytest.importorskip(
        "google.cloud.dataflow_v1beta3", reason="Beam's packages for Google Cloud are not installed: rookery[gcp]"
    )
    account = "--service_account_email=rookery-dataflow@seal-survey.iam.gserviceaccount.com"
    argv = ["--mosaics=gs://seals/*.tif", "--annotations=gs://seals/*.xml", "--output=gs://seals/ds", *DATAFLOW]
    with pytest.raises(SystemExit) as end:
        shard.run([*argv, "--sdk_location=container", account, "--job_name=seals-1", "--dry_run"])
    assert end.value.code == 0
    request = json.loads(capsys.readouterr().out)
    assert (request["projectId"], request["location"]) == ("seal-survey", "europe-west4")
    assert (request["job"]["name"], request["job"]["type"]) == ("seals-1", "JOB_TYPE_BATCH")
    environment = request["job"]["environment"]
    assert environment["tempStoragePrefix"].startswith("storage.googleapis.com/seals/tmp/seals-1.")
    assert environment["serviceOptions"] == ["enable_prime"]
    assert environment["serviceAccountEmail"] == account.partition("=")[2]
    assert "use_runner_v2" in environment["experiments"]  # the workers' protocol that test_beam_jobs_portable.py speaks
    (pool,) = environment["workerPools"]
    assert (pool["numWorkers"], pool["machineType"]) == (4, "n2-standard-4")
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 8
    image = "europe-west4-docker.pkg.dev/seal-survey/rookery/beam:1"
    assert pool["workerHarnessContainerImage"] == image
    assert [one["containerImage"] for one in pool["sdkHarnessContainerImages"]] == [image]
    assert "packages" not in pool  # nothing of this machine is staged for the workers
