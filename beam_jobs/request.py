"""The launch request of a job on Dataflow: made by Beam's own Dataflow runner, shown instead of sent, without any network.

It depends on the options alone. The steps of a job are not in it: Beam puts them into a bucket beforehand, and names the file.
"""

import copy
import json
import logging
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, TestOptions
from google.protobuf import json_format

# Not shown: all of Beam's options with their defaults, and what Beam is capable of.
_LONG = ("sdkPipelineOptions", "capabilities")


def text(options: PipelineOptions) -> str:
    """The request as JSON.

    Args:
      options: for Dataflow, and checked by `dataflow.check`.
    """
    return json.dumps(_without(make(options), _LONG), indent=2)


def make(options: PipelineOptions) -> dict[str, Any]:
    """What Beam would send to Dataflow for a job with these options, in the names of its REST interface.

    Args:
      options: for Dataflow, and checked by `dataflow.check`; they stay as they are.
    """
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
    from apache_beam.runners.dataflow.internal import apiclient
    from google.cloud.dataflow_v1beta3 import CreateJobRequest

    options = copy.deepcopy(options)
    options.view_as(TestOptions).dry_run = True
    cloud = options.view_as(GoogleCloudOptions)
    cloud.temp_location = cloud.temp_location or cloud.staging_location
    # Not built with `options`: Beam's validator would ask Google about the bucket.
    pipeline = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([]))
    pipeline | beam.Create([0]) | beam.Reshuffle()
    level = logging.getLogger("apache_beam").level
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    try:
        job = DataflowRunner().run_pipeline(pipeline, options).job
        # The rest of apiclient.DataflowApplicationClient.create_job_description, whose client would look for credentials.
        job.proto.environment = apiclient.Environment(
            packages=[],  # with --sdk_location=container nothing is staged for the workers
            options=options,
            environment_version=apiclient._FNAPI_ENVIRONMENT_MAJOR_VERSION,
            proto_pipeline_staged_url=f"{cloud.staging_location}/pipeline.pb",
            proto_pipeline=job.proto_pipeline,
        ).proto
    finally:
        logging.getLogger("apache_beam").setLevel(level)
    request = CreateJobRequest(project_id=cloud.project, location=cloud.region, job=job.proto)
    made: dict[str, Any] = json_format.MessageToDict(request._pb)
    return made


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _without(content, names) for name, content in value.items() if name not in names}
    return [_without(one, names) for one in value] if isinstance(value, list) else value
