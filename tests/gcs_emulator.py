"""Cloud Storage on this machine: gcp-storage-emulator in its own process, closer to the real one, and with a log of requests.

What is added to the emulator, because GDAL, TensorFlow or our tests ask for it and the real service does it:

- the XML listing of a bucket (GET /BUCKET/?prefix=...), without which GDAL tries every name that a sidecar file might have;
- 416 for a range beyond the end;
- `if_generation_match=0`: 412 where the object is there;
- an upload in pieces that is asked how far it is: no range where nothing has arrived, and the object where all has (the emulator
  says one byte, and 404: the one spoils what TensorFlow sends again, the other an upload whose last answer was lost);
- empty objects by a media upload, which is how TensorFlow makes folders;
- many requests at once: the emulator takes one connection after the other, and one client that has connected but waits for
  another of its own (a process whose GIL TensorFlow holds while it reads) would stop it for good;
- `POST /_fail?status=503&times=2&match=TEXT`: the next requests whose line contains TEXT fail.

Not to be had: preconditions on other generations, credentials, permissions.
"""

import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

# Set by `survey.storage` where GDAL reads an object.
GDALS = ("CPL_GS_ENDPOINT", "GS_NO_SIGN_REQUEST", "GDAL_HTTP_MAX_RETRY", "GDAL_HTTP_RETRY_DELAY", "GDAL_HTTP_RETRY_CODES")


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the log: what was asked and how many bytes of content went back."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int


@dataclass(frozen=True, slots=True)
class Emulator:
    """A running emulator, and the environment by which clients in this and other processes find it."""

    url: str
    log: Path
    environment: dict[str, str]

    def requests(self, containing: str = "", since: int = 0) -> list[Request]:
        """Requests so far, from the `since`th on, whose path contains a text; names in it are percent-encoded."""
        lines = self.log.read_text().splitlines()[since:]
        return [request for request in (Request(**json.loads(line)) for line in lines) if containing in request.path]

    def fail(self, status: int, times: int, match: str) -> None:
        """Lets the next requests that contain a text fail; 0 times ends it."""
        query = urllib.parse.urlencode({"status": status, "times": times, "match": match})
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/_fail?{query}", method="POST")).close()

    def upload(self, local: Path | str, url: str) -> str:
        """Puts a local file there, as `gcloud storage cp` would; returns the address."""
        bucket, _, name = url.removeprefix("gs://").partition("/")
        address = f"{self.url}/{bucket}/{urllib.parse.quote(name)}"
        put = urllib.request.Request(address, data=Path(local).read_bytes(), method="PUT")
        put.add_header("Content-Type", "application/octet-stream")
        urllib.request.urlopen(put).close()
        return url


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def wait_until_open(port: int, process: subprocess.Popen, seconds: float = 60) -> None:
    """Waits until something listens on a port."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"{process.args} does not listen on port {port}")


@contextmanager
def running(folder: Path) -> Iterator[Emulator]:
    """An emulator in a process of its own, with one bucket, `bkt`."""
    port, log = free_port(), folder / "requests.jsonl"
    log.touch()
    process = subprocess.Popen([sys.executable, __file__, str(port), str(log)], stderr=subprocess.DEVNULL)
    try:
        wait_until_open(port, process)
        url = f"http://127.0.0.1:{port}"
        # The client would ask in the background for metadata of the bucket, for traces that nobody collects.
        environment = {"STORAGE_EMULATOR_HOST": url, "NO_GCE_CHECK": "true"}
        yield Emulator(url, log, environment)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def _gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("gcs")) as emulator:
        yield emulator


@pytest.fixture
def gcs(_gcs_server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """The emulator that gs:// means during this test, here and in the processes that it starts. Its bucket is `bkt`."""
    for name, value in _gcs_server.environment.items():
        monkeypatch.setenv(name, value)
    # `survey.storage` tells GDAL of the emulator by these: they must not outlive the test.
    for name in GDALS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return _gcs_server


def _serve(port: int, log: Path) -> None:
    import gcp_storage_emulator.server as emulator
    from gcp_storage_emulator.handlers import objects

    class Threads(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    failing, one_at_a_time = {"status": 0, "times": 0, "match": ""}, threading.Lock()
    lines = log.open("a", buffering=1)
    read_data, close, handle = emulator._read_data, emulator.Response.close, emulator.Router.handle
    download, insert, upload_partial = objects.download, objects.insert, objects.upload_partial
    incomplete, finalize = objects._resumable_incomplete, objects._finalize_resumable_object
    finished: dict[str, dict[str, object]] = {}

    def read_data_as_gcs(handler: object, query: dict[str, list[str]]) -> object:
        data = read_data(handler, query)
        return b"" if data is None and query.get("uploadType") == ["media"] else data

    def close_and_log(response: emulator.Response) -> None:
        handler = response._handler
        line = {"method": handler.command, "path": handler.path, "range": handler.headers.get("Range")}
        lines.write(json.dumps({**line, "status": int(response.status), "sent": len(response._content)}) + "\n")
        close(response)

    def handle_in_turn(router: emulator.Router, method: str) -> None:
        handler = router._request_handler
        # Nothing waits for a client while the storage is locked: its request is there, its answer is sent afterwards.
        if length := handler.headers.get("Content-Length"):
            handler.rfile = io.BytesIO(handler.rfile.read(int(length)))
        network, handler.wfile = handler.wfile, io.BytesIO()
        with one_at_a_time:
            handle_or_fail(router, method)
        network.write(handler.wfile.getvalue())
        handler.wfile = network

    def handle_or_fail(router: emulator.Router, method: str) -> None:
        handler = router._request_handler
        address = urllib.parse.urlparse(handler.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(address.query).items()}
        response = emulator.Response(handler)
        if address.path == "/_fail":
            failing.update(status=int(query["status"]), times=int(query["times"]), match=query.get("match", ""))
        elif failing["times"] and failing["match"] in f"{method} {handler.path}":
            failing["times"] -= 1
            handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            response.status = emulator.HTTPStatus(failing["status"])
            response.json({"error": {"code": failing["status"], "message": "as the test asked"}})
        elif method == "GET" and (bucket := re.fullmatch(r"/([-.\w]+)/", address.path)):
            response["Content-type"] = "application/xml"
            response.write(listing(handler.storage, bucket[1], query))
        else:
            handle(router, method)
            return
        response.close()

    def listing(storage: object, bucket: str, query: dict[str, str]) -> str:
        """https://cloud.google.com/storage/docs/xml-api/get-bucket-list."""
        prefix = query.get("prefix", "")
        found, folders = storage.get_file_list(bucket, prefix or None, query.get("delimiter"))
        entries = "".join(
            f"<Contents><Key>{escape(one['name'])}</Key><Size>{one['size']}</Size>"
            f"<LastModified>{one['updated']}</LastModified><ETag>{escape(one['etag'])}</ETag></Contents>"
            for one in found
        )
        entries += "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders)
        head = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
        return f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{head}{entries}</ListBucketResult>'

    def download_as_gcs(request: object, response: emulator.Response, storage: object, *more: object) -> None:
        download(request, response, storage, *more)
        asked = re.fullmatch(r"bytes=(\d+)-\d*", request.get_header("range") or "")
        # The emulator names the length of the object in "bytes 5-3/4".
        total = re.fullmatch(r"bytes .*/(\d+)", response._headers.get("Content-Range", ""))
        if asked and total and int(asked[1]) >= int(total[1]):
            response.status = emulator.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            response._headers = {"Content-Range": f"bytes */{total[1]}"}
            response.write_file(b"")

    def insert_as_gcs(request: object, response: emulator.Response, storage: object, *more: object) -> None:
        if request.query.get("ifGenerationMatch") == ["0"]:
            data = request.data if isinstance(request.data, dict) else {}
            name = request.query.get("name", [None])[0] or (data.get("meta") or data).get("name")
            if storage.get_file_list(request.params["bucket_name"], name)[0][:1]:
                response.status = emulator.HTTPStatus.PRECONDITION_FAILED
                response.json({"error": {"code": 412, "message": "the object is there"}})
                return
        insert(request, response, storage, *more)

    def upload_partial_as_gcs(request: object, response: emulator.Response, storage: object, *more: object) -> None:
        if done := finished.get(request.query["upload_id"][0]):
            response.json(done)
        else:
            upload_partial(request, response, storage, *more)

    def finalize_as_gcs(response: emulator.Response, storage: object, obj: dict[str, object], data: bytes, upload: str) -> None:
        finalize(response, storage, obj, data, upload)
        finished[upload] = obj

    def incomplete_as_gcs(response: emulator.Response, storage: object, upload: str, fallback_end: int = 0) -> None:
        incomplete(response, storage, upload, fallback_end)
        if not storage.get_resumable_byte_count(upload) and not fallback_end:
            del response._headers["Range"]

    emulator._read_data = read_data_as_gcs
    emulator.Response.close = close_and_log
    emulator.Router.handle = handle_in_turn
    http.server.HTTPServer = Threads
    ours = {download: download_as_gcs, insert: insert_as_gcs, upload_partial: upload_partial_as_gcs}
    objects.download, objects.insert, objects.upload_partial = ours.values()
    objects._resumable_incomplete, objects._finalize_resumable_object = incomplete_as_gcs, finalize_as_gcs
    emulator.HANDLERS = tuple(
        (path, {verb: ours.get(one, one) for verb, one in verbs.items()}) for path, verbs in emulator.HANDLERS
    )
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bkt")
    server.start()
    parent = os.getppid()
    while os.getppid() == parent:  # ends with the tests, also where they were killed
        time.sleep(1)
    server.stop()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
