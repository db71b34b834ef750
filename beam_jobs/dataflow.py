"""What a job on Dataflow needs beyond the flags of its own, checked before anything is read, staged or paid for.

Beam's own validator would ask Google's servers on the way (for a default bucket, for the policy of the given one), and without
credentials keeps trying for minutes. Its checks of single options are used here, those questions are not.
"""

import importlib.util
from collections.abc import Mapping

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, SetupOptions, StandardOptions, WorkerOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator

from survey import storage
from survey.errors import InputError


def chosen(options: PipelineOptions) -> bool:
    """Whether the options ask for Dataflow."""
    runner: str = options.view_as(StandardOptions).runner or ""
    return runner.rpartition(".")[2].lower() in ("dataflowrunner", "dataflow", "testdataflowrunner")


def check(options: PipelineOptions) -> None:
    """Refuses options that Dataflow would refuse, or with which its workers would fail.

    Args:
      options: with `chosen(options)`.

    Raises:
      InputError: all that is wrong with them, or the packages are missing that submit a job.
    """
    cloud, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    wrong = []
    if not cloud.project:
        wrong.append("--project is missing: the ID of the project that pays")
    if not cloud.region:
        wrong.append("--region is missing: the one of your bucket, such as europe-west4")
    if not (cloud.temp_location or cloud.staging_location):
        wrong.append("--temp_location is missing: a folder for Dataflow's own files, such as gs://BUCKET/tmp")
    if not (workers.sdk_container_image or options.view_as(SetupOptions).setup_file):
        wrong.append(
            "--sdk_container_image is missing: workers need Rookery and its packages; `docker build --target beam` makes it"
        )
    validator = PipelineOptionsValidator(options, None)
    for name in ("temp_location", "staging_location"):
        if getattr(cloud, name):
            wrong += validator.validate_gcs_path(cloud, name)
    if cloud.project and cloud.region:
        wrong += validator.validate_cloud_options(cloud)
    wrong += validator.validate_num_workers(workers)
    wrong += validator.validate_worker_region_zone(workers)
    wrong += validator.validate_sdk_container_image_options(workers)
    if wrong:
        raise InputError("--runner=DataflowRunner: " + "; ".join(text.rstrip(".") for text in wrong))
    if not installed():
        raise InputError("--runner=DataflowRunner needs Beam's packages for Google Cloud: pip install 'rookery[gcp]'")


def installed() -> bool:
    """Whether the packages are there that submit a job (the extra `gcp`)."""
    return importlib.util.find_spec("google.cloud.dataflow") is not None


def refuse_local(options: PipelineOptions, paths: Mapping[str, str]) -> None:
    """Refuses paths that only this machine sees, where the work is done elsewhere.

    Args:
      options: of the job.
      paths: what workers read or write, by flag.

    Raises:
      InputError: names the first.
    """
    if not chosen(options):
        return
    for flag, path in paths.items():
        if not storage.is_remote(path):
            raise InputError(
                f"--{flag}={path}: workers of Dataflow cannot see it; copy it with gcloud storage cp and give its gs:// address"
            )
