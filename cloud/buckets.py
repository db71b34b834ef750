"""Does a bucket exist, and does it lie where the job runs? Bytes that cross regions are slow, and billed.

python -m cloud.buckets gs://BUCKET[/FOLDER] [...] --region us-west4
"""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from survey import flags, storage
from survey.errors import InputError

if TYPE_CHECKING:
    from google.cloud.storage import Client

# cloud.google.com/storage/docs/locations: a multi-region, and the regions in which its data may lie. The EU's are in its member
# states; London and Zurich are not.
_NOT_EU = ("europe-west2", "europe-west6")
_CONTINENTS = {"US": "us-", "EU": "europe-", "ASIA": "asia-"}
# The predefined pairs; others are made of a continent and say their regions themselves.
_PAIRS = {
    "ASIA1": ("asia-northeast1", "asia-northeast2"),
    "EUR4": ("europe-north1", "europe-west4"),
    "EUR5": ("europe-west1", "europe-west2"),
    "EUR7": ("europe-west2", "europe-west3"),
    "EUR8": ("europe-west3", "europe-west6"),
    "NAM4": ("us-central1", "us-east1"),
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a bucket lies.

    Attributes:
      name: as Cloud Storage writes it: "US-WEST4", "EU", "NAM4".
      regions: those of a pair of regions that somebody has chosen, in lower case; empty otherwise.
    """

    name: str
    regions: tuple[str, ...] = ()

    def holds(self, region: str) -> bool:
        """Whether a job in that region is near to the data.

        >>> Location("US-WEST4").holds("us-west4"), Location("US").holds("us-west4"), Location("EU").holds("europe-west2")
        (True, True, False)
        """
        pair = self.regions or _PAIRS.get(self.name, ())
        if pair:
            return region in pair
        continent = _CONTINENTS.get(self.name)
        if continent is None:
            return region == self.name.lower()
        return region.startswith(continent) and not (self.name == "EU" and region in _NOT_EU)


def check(urls: Sequence[str], region: str) -> list[str]:
    """Refuses buckets that are not there or lie elsewhere.

    Args:
      urls: gs:// addresses; only their buckets matter.
      region: of the job, "us-west4".

    Returns:
      Notes for people, on what could not be seen.

    Raises:
      InputError: there is no such bucket, or it lies in another region, or nobody is logged in.
    """
    notes = []
    for bucket in sorted({storage.split(url)[0] for url in urls}):
        found = locate(bucket)
        if found is None:
            notes.append(
                f"note: where gs://{bucket} lies cannot be seen by you (role Storage Legacy Bucket Reader): make sure it is "
                f"{region} or a multi-region around it"
            )
        elif not found.holds(region):
            raise InputError(
                f"gs://{bucket} lies in {found.name.lower()}, the job in {region}: every byte would cross regions, slowly, and "
                f"billed. Take a zone of the bucket's region, or make a bucket beside the job, gcloud storage buckets create "
                f"gs://NAME --location={region}, and copy: gcloud storage cp -r gs://{bucket}/FOLDER gs://NAME/"
            )
    return notes


def locate(bucket: str) -> Location | None:
    """Where a bucket lies; None where that is not for us to see.

    Raises:
      InputError: there is none, or nobody is logged in.
    """
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        found = _client(os.environ.get("STORAGE_EMULATOR_HOST")).get_bucket(bucket)
    except exceptions.NotFound as error:
        raise InputError(
            f"gs://{bucket}: the bucket does not exist: check the name, or make it with gcloud storage buckets create "
            f"gs://{bucket} --location=REGION"
        ) from error
    except (GoogleAuthError, exceptions.Unauthorized) as error:
        raise InputError(f"gs://{bucket}: no valid Google credentials: run gcloud auth application-default login") from error
    except exceptions.Forbidden:
        return None
    return Location(str(found.location).upper(), tuple(name.lower() for name in found.data_locations or ()))


@functools.lru_cache(maxsize=1)
def _client(emulator: str | None) -> "Client":
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage as google

    if emulator:
        return google.Client(project="emulator", credentials=AnonymousCredentials())
    return google.Client()


def run(argv: Sequence[str]) -> int:
    """The command line; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m cloud.buckets", description="Refuses buckets that are missing or far away.")
    parser.add_argument("urls", nargs="+", metavar="gs://BUCKET", help="addresses; only their buckets are looked at")
    parser.add_argument("--region", required=True, help="of the job: us-west4")
    options = parser.parse_args(argv)
    for url in options.urls:
        if not storage.is_remote(url):
            raise InputError(f"{url}: must be a gs:// address")
    for note in check(options.urls, options.region):
        print(note, file=sys.stderr)
    return 0


if __name__ == "__main__":
    flags.exit_with(run)
