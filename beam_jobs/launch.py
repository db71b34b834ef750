"""Runs a Beam pipeline: on this machine by default, on any of Beam's runners when its flags say so.

Import this module only after the command line was parsed: Beam takes seconds to import.
"""

import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
    _BeamArgumentParser,
)
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms import environments

from beam_jobs import dataflow, request
from survey import flags
from survey.errors import InputError

# The plain DirectRunner tries Prism first, a Go binary that it downloads. These names all mean "on this machine", which for us
# is Beam's in-process portable runner: the same protocol to its workers as Dataflow's, nothing to download.
_IN_PROCESS = ("directrunner", "direct", "switchingdirectrunner", "fnapirunner")


class _Parser(_BeamArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (an option of Apache Beam)")


def options(argv: Sequence[str], own: Iterable[str], *, prog: str) -> PipelineOptions:
    """Beam's options from the flags that a verb did not know.

    With --dry_run, prints the request that Dataflow would get and ends the process, as --help does: nothing was read or written.

    Args:
      argv: the flags left over by `survey.flags.parse(..., passthrough=True)`.
      own: the verb's own flags, without dashes, so that a typing error is compared with them too.
      prog: how the command was called.

    Returns:
      Options with a runner that exists; `--direct_num_workers` alone turns on separate processes.

    Raises:
      InputError: a flag that is neither the verb's nor Beam's, a value Beam does not take, an unknown runner, or one that lacks
        something.
    """
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    for group in PipelineOptions.__subclasses__():
        if group.__module__.startswith("apache_beam."):
            group._add_argparse_args(parser)
    # Beam's --dry_run wants a value, which nobody would guess.
    argv = ["--dry_run=True" if argument == "--dry_run" else argument for argument in argv]
    _, unknown = parser.parse_known_args(argv)
    beams = [text.lstrip("-") for action in parser._actions for text in action.option_strings]
    flags.refuse_unknown(unknown, [*own, *beams], prog=prog)

    chosen = PipelineOptions(list(argv))
    standard, direct = chosen.view_as(StandardOptions), chosen.view_as(DirectOptions)
    runner = standard.runner or "DirectRunner"
    known = [name.lower() for name in StandardOptions.KNOWN_RUNNER_NAMES]
    if "." not in runner and not {runner.lower(), runner.lower() + "runner"} & {*known, *_IN_PROCESS}:
        near = flags.nearest(runner, StandardOptions.KNOWN_RUNNER_NAMES)
        raise InputError(f"--runner={runner} is not a runner of Apache Beam: did you mean {near}?")
    standard.runner = "FnApiRunner" if runner.lower() in _IN_PROCESS else runner
    if direct.direct_num_workers < 0:
        raise InputError(f"--direct_num_workers={direct.direct_num_workers}: must be 0 (one for each core) or more")
    if direct.direct_num_workers != 1 and not any(text.startswith("--direct_running_mode") for text in argv):
        # In memory, Beam would ignore the number of workers with a warning; Python threads would share one core.
        direct.direct_running_mode = "multi_processing"
    if chosen.view_as(SetupOptions).save_main_session:
        raise InputError("--save_main_session: workers import Rookery as a package; leave the flag out")
    if dataflow.chosen(chosen):
        dataflow.check(chosen)
    if chosen.view_as(TestOptions).dry_run:
        if not dataflow.chosen(chosen):
            # Beam would run the job: on other runners its flag means nothing.
            raise InputError("--dry_run: shows the request to Dataflow, and goes with --runner DataflowRunner; leave it out")
        print(request.text(chosen))
        raise SystemExit(0)
    return chosen


def run(chosen: PipelineOptions, construct: Callable[[beam.Pipeline], object]) -> dict[str, int]:
    """Builds a pipeline, runs it to the end, and returns its counters.

    Args:
      chosen: from `options`.
      construct: adds the transforms to an empty pipeline.

    Returns:
      Sums of all `beam.metrics.Metrics.counter`s over all workers, by name.

    Raises:
      InputError: a worker raised one.
      RuntimeError: the runner gave the job up without raising the worker's own error.
    """
    runner = _runner(chosen)
    if isinstance(runner, fn_runner.FnApiRunner):
        # On this machine, whatever goes wrong is raised below with the worker's traceback; the log would only repeat it.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    pipeline = beam.Pipeline(runner=runner, options=chosen)
    construct(pipeline)
    try:
        result = pipeline.run()
        state = result.wait_until_finish()
    except (InputError, RuntimeError) as error:
        if (cause := _input_error(error)) is not None:
            raise cause from error
        raise
    if state != PipelineState.DONE:
        raise RuntimeError(f"the Beam job ended as {state}; its log says why")
    return {counter.key.metric.name: counter.result for counter in result.metrics().query()["counters"]}


def _runner(chosen: PipelineOptions) -> str | fn_runner.FnApiRunner:
    name: str = chosen.view_as(StandardOptions).runner
    if name != "FnApiRunner":
        return name
    # Workers in other processes learn the options from the provision service, as on Dataflow.
    encoded = JobServiceHandle.encode_pipeline_options(chosen.get_all_options())
    provision = fn_runner.ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    direct = chosen.view_as(DirectOptions)
    environment = None
    if direct.direct_running_mode == "multi_processing":
        command = f"{shlex.quote(sys.executable)} -m beam_jobs.worker"
        environment = environments.SubprocessSDKEnvironment.from_command_string(command)
        direct.direct_running_mode = "in_memory"  # any other mode makes the runner replace our environment by its own
    return fn_runner.FnApiRunner(default_environment=environment, provision_info=provision)


def _input_error(error: Exception) -> InputError | None:
    """The InputError that a worker raised, without Beam's additions; from another process it comes as text in a traceback."""
    name = f"{InputError.__module__}.{InputError.__qualname__}: "
    text = name + str(error) if isinstance(error, InputError) else str(error)
    found = re.search(rf"^{re.escape(name)}(.+?)(?: \[while running.*)?$", text, re.MULTILINE)
    return InputError(found[1]) if found else None
