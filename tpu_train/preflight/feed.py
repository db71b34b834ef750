"""How fast hosts decode, as `benchmarks/input_pipeline.py --json` measured it."""

from dataclasses import dataclass

from survey import files
from survey.errors import InputError

MEASURE = "python benchmarks/input_pipeline.py --json FILE"


@dataclass(frozen=True, slots=True)
class Rate:
    """A measured input.

    Attributes:
      images_per_core_s: patches that one core decodes in a second.
      image_size: side of the patches in pixels.
      cores: of the machine that was measured.
    """

    images_per_core_s: float
    image_size: int
    cores: int

    def at(self, patch_size: int) -> float:
        """Images a second of one core for patches of another side: what a pixel costs stays the same."""
        return self.images_per_core_s * (self.image_size / patch_size) ** 2


def read(path: str) -> Rate:
    """What was measured.

    Raises:
      InputError: there is no such file, or another one wrote it.
    """
    if not files.exists(path):
        raise InputError(f"--input_rate={path}: there is no such file; measure it here: {MEASURE}")
    found = files.read_json(path, "a measurement of the input")
    try:
        cores, size, rate = int(found["cores"]), int(found["image_size"]), float(found["images_per_s"]["rookery"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--input_rate={path}: holds no {error} of a measurement; make it with: {MEASURE}") from error
    if min(cores, size, rate) <= 0:
        raise InputError(f"--input_rate={path}: cores, image_size and images_per_s must be above 0; make it with: {MEASURE}")
    return Rate(rate / cores, size, cores)
