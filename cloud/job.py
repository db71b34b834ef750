"""A training job on a TPU as data: what is created, under which name, and what it runs."""

import hashlib
import re
import shlex
from dataclasses import dataclass

from cloud.gcloud import Place
from survey.accelerators import Slice
from survey.errors import InputError

LABEL = "rookery-job"  # of a TPU: whose it is
STARTUP = "cloud/startup.sh"
# cloud.google.com/tpu/docs/runtimes: the base images, into which the container brings its own TensorFlow and libtpu.
_RUNTIMES = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
_OLDER = "tpu-ubuntu2204-base"
POD_RUNTIME = "tpu-vm-tf-2.18.0-pod-pjrt"  # the last of its kind
# gcloud splits --metadata at commas, unless it is told another mark (gcloud topic escaping).
_MARK = ";;"


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained, and on what.

    Attributes:
      name: of the TPU and its queued resource.
      place: project and zone.
      slice: what is rented.
      runtime_version: of the TPU VM.
      image: that holds Rookery, REGION-docker.pkg.dev/...
      dataset: gs:// folder.
      model_dir: gs:// folder of the run.
      train: further flags of `rookery train`.
      spot: whether it may be taken away.
      service_account: that the TPU VM acts as, None for the project's default.
    """

    name: str
    place: Place
    slice: Slice
    runtime_version: str
    image: str
    dataset: str
    model_dir: str
    train: tuple[str, ...] = ()
    spot: bool = False
    service_account: str | None = None

    @property
    def folder(self) -> str:
        """Where logs and signs of life go. Beside the run's folder: `rookery train` refuses a new run where anything lies."""
        return f"{self.model_dir.rstrip('/')}.job"

    @property
    def command(self) -> tuple[str, ...]:
        """What runs in the container."""
        return ("rookery", "train", f"--dataset={self.dataset}", f"--model_dir={self.model_dir}", *self.train)

    @property
    def label(self) -> str:
        """Names the run in a label, which may hold lower-case letters, digits and dashes only."""
        return hashlib.sha256(self.model_dir.rstrip("/").encode()).hexdigest()[:16]

    def metadata(self, attempt: int) -> dict[str, str]:
        """What the start-up script on the TPU VM reads.

        Args:
          attempt: number of this creation.
        """
        values = {
            "rookery-image": self.image,
            "rookery-folder": self.folder,
            "rookery-attempt": str(attempt),
            "rookery-name": self.name,
            "rookery-command": shlex.join(self.command),
        }
        if self.slice.hosts > 1:
            values["rookery-tpu-name"] = self.name  # the whole slice is reached by it from worker 0
        return values

    def create(self, attempt: int) -> list[str]:
        """The gcloud command that asks for the TPU."""
        metadata = _MARK.join(f"{key}={value}" for key, value in self.metadata(attempt).items())
        return [
            *("compute", "tpus", "queued-resources", "create", self.name, f"--node-id={self.name}", *self.place.flags),
            f"--accelerator-type={self.slice.accelerator_type}",
            f"--runtime-version={self.runtime_version}",
            *(["--spot"] if self.spot else []),
            f"--labels={LABEL}={self.label}",
            f"--metadata=^{_MARK}^{metadata}",
            f"--metadata-from-file=startup-script={STARTUP}",
            *([f"--service-account={self.service_account}"] if self.service_account else []),
            # In full: gcloud passes the word on as it is.
            "--scopes=https://www.googleapis.com/auth/cloud-platform",
            "--async",
        ]

    def describe(self) -> list[str]:
        """The gcloud command that shows how the request stands."""
        return ["compute", "tpus", "queued-resources", "describe", self.name, *self.place.flags]

    def describe_node(self) -> list[str]:
        """The gcloud command that shows how the TPU stands."""
        return ["compute", "tpus", "tpu-vm", "describe", self.name, *self.place.flags]

    def delete(self) -> list[str]:
        """The gcloud command that ends the TPU and its billing."""
        return ["compute", "tpus", "queued-resources", "delete", self.name, *self.place.flags, "--force", "--async"]

    def check(self) -> None:
        """Refuses what no service needs to be asked about.

        Raises:
          InputError: names the flag or the variable.
        """
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise InputError(
                f"--name={self.name}: must be 1 to 63 lower-case letters, digits and dashes, a letter first, no dash last"
            )
        if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", self.place.zone):
            raise InputError(f"ZONE={self.place.zone}: must be a zone such as us-west4-a (a region and a letter)")
        for flag, url in (("dataset", self.dataset), ("model_dir", self.model_dir)):
            if not url.startswith("gs://") or not url.removeprefix("gs://").rstrip("/").partition("/")[2]:
                raise InputError(f"--{flag}={url}: a TPU reads and writes Cloud Storage: must be gs://BUCKET/FOLDER")
        if not re.fullmatch(r"[\w.-]+(:\d+)?/[\w./-]+([:@][\w.:-]+)?", self.image):
            raise InputError(
                f"IMAGE={self.image}: must be the address of the image `tpu`, REGION-docker.pkg.dev/PROJECT/rookery/tpu:TAG"
            )
        if any(_MARK in value or "\n" in value for value in self.metadata(1).values()):
            raise InputError(f"a flag of `rookery train` holds {_MARK!r} or a line break: put it into a --config file")
        if self.slice.hosts > 1 and "-pod-" not in self.runtime_version:
            raise InputError(
                f"--accelerator={self.slice.accelerator_type} has {self.slice.hosts} hosts: TensorFlow drives them from worker "
                "0, through servers that only a runtime with -pod- in its name starts on the others: "
                f"--runtime_version={POD_RUNTIME}, with an image of the same TensorFlow; or take a slice of one host, "
                "such as v5litepod-8"
            )


def runtime_version(where: Slice) -> str:
    """The runtime that suits a chip.

    >>> from survey import accelerators
    >>> runtime_version(accelerators.parse("v5litepod-8")), runtime_version(accelerators.parse("v4-8"))
    ('v2-alpha-tpuv5-lite', 'tpu-ubuntu2204-base')
    """
    return _RUNTIMES.get(where.chip.generation, _OLDER)
