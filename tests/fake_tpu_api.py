"""Cloud TPU on this machine, for the real gcloud: queued resources that run through their states, and VMs that really start.

`CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU` leads gcloud here. A TPU that becomes ACTIVE runs its start-up script as processes of this
machine, one for each worker, with a metadata server of its own and a stand-in `docker` that runs the container's command here.
A request moves on by one state each time it is looked at, so that nothing depends on the speed of the machine.

Not to be had: permissions, quota and capacity that somebody has not asked for (`refuse`, `failures`), and anything that computes.
"""

import json
import os
import re
import signal
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

QUEUE = ("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
BILLED = ("PROVISIONING", "ACTIVE", "SUSPENDING")
# As the service words them.
QUOTA = (
    429,
    "RESOURCE_EXHAUSTED",
    "Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-west4-a.",
)
NO_QUEUE = (
    403,
    "PERMISSION_DENIED",
    "User does not have permission to submit requests into this queue for accelerator type v5litepod-8 in location us-west4-a.",
)
NO_RIGHT = (
    403,
    "PERMISSION_DENIED",
    "Permission 'tpu.nodes.create' denied on resource 'projects/p/locations/us-west4-a' (or it may not exist).",
)
BUSY = (503, "UNAVAILABLE", "The service is currently unavailable.")
DOCKER = """#!/usr/bin/env bash
# A stand-in: the container is this machine.
set -euo pipefail
echo "docker $*" >>"$FAKE_FOLDER/docker.log"
case $1 in
  login)
    cat >>"$FAKE_FOLDER/tokens"
    echo >>"$FAKE_FOLDER/tokens" ;;
  pull)
    if [ -s "$FAKE_FOLDER/pulls_to_fail" ]; then
      sed -i 1d "$FAKE_FOLDER/pulls_to_fail"
      exit 1
    fi ;;
  run)
    shift
    while [[ $1 == --* ]]; do
      case $1 in
        --env) export "${2?}"; shift ;;
        --name | --stop-timeout) shift ;;
      esac
      shift
    done
    shift
    exec "$@" ;;
esac
"""


@dataclass(slots=True)
class Vm:
    """A worker of a TPU: its start-up script, and the server that knows its metadata."""

    process: subprocess.Popen[bytes]
    metadata: ThreadingHTTPServer


@dataclass(slots=True)
class Request:
    """A queued resource."""

    body: dict[str, Any]
    state: str = "CREATING"
    node: str = "CREATING"
    failure: str = ""
    vms: list[Vm] = field(default_factory=list)


@dataclass(slots=True)
class FakeTpu:
    """The service.

    Attributes:
      folder: for scripts and logs.
      environment: of the VMs' processes.
      accelerators: that the zone offers.
      requests: by name.
      log: method and path of every request.
      created: bodies of all that were granted.
      failures: why the next creations fail after they have been accepted.
      refusals: requests to be refused: part of "METHOD PATH", how many times still, and the answer.
      hosts: of a TPU.
      quick: whether a request is granted, and a TPU deleted, at once; it saves a second or two for each state.
      url: where it listens.
    """

    folder: Path
    environment: dict[str, str]
    accelerators: tuple[str, ...] = ("v2-8", "v5litepod-4", "v5litepod-8", "v5litepod-16")
    requests: dict[str, Request] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refusals: list[tuple[str, int, tuple[int, str, str]]] = field(default_factory=list)
    hosts: int = 1
    quick: bool = True
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def billed(self) -> list[str]:
        """Names of what bills now."""
        return [name for name, request in self.requests.items() if request.state in BILLED]

    def refuse(self, part: str, times: int, answer: tuple[int, str, str]) -> None:
        """Refuses the next requests in whose "METHOD PATH" a text stands."""
        self.refusals.append((part, times, answer))

    def preempt(self, name: str) -> None:
        """Takes a TPU away, as it happens: without a word to what runs on it."""
        with self.lock:
            request = self.requests[name]
            request.state, request.node = "SUSPENDING", "PREEMPTED"
            self.kill(request)

    def kill(self, request: Request) -> None:
        """Ends the VMs of a TPU, and all that runs on them."""
        for vm in request.vms:
            with suppress(ProcessLookupError):
                os.killpg(vm.process.pid, signal.SIGKILL)
            vm.process.wait()
            vm.metadata.shutdown()
            vm.metadata.server_close()
        request.vms.clear()

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and the body of the answer to a request."""
        with self.lock:
            self.log.append(f"{method} {path}")
            for i, (part, times, (code, status, message)) in enumerate(self.refusals):
                if part in f"{method} {path}" and times:
                    self.refusals[i] = (part, times - 1, (code, status, message))
                    return code, {"error": {"code": code, "message": message, "status": status}}
            found = re.fullmatch(r"/v[12]/(projects/([^/]+)/locations/([^/]+))/(\w+)(?:/([^/]+))?", path)
            if not found:
                return 404, _error(404, "NOT_FOUND", f"{path} is not known here")
            parent, _, zone, kind, name = found.groups()
            if zone != "us-west4-a":
                message = f"Location {zone} is not found or access is unauthorized."
                return 403, _error(403, "PERMISSION_DENIED", message)
            if kind == "acceleratorTypes":
                types = [{"name": f"{parent}/acceleratorTypes/{each}", "type": each} for each in self.accelerators]
                return 200, {"acceleratorTypes": types}
            if kind == "queuedResources" and method == "POST":
                return self.create(parent, query["queuedResourceId"], body)
            missing = 404, _error(404, "NOT_FOUND", f"Resource '{parent}/{kind}/{name}' was not found")
            if name not in self.requests:
                return missing
            if method == "DELETE":
                self.requests[name].state = "DELETING"
                self.kill(self.requests[name])
                if self.quick:
                    del self.requests[name]
                return 200, {"name": f"{parent}/operations/delete-{name}", "done": False}
            if kind == "nodes":
                request = self.requests[name]
                return (200, {"name": f"{parent}/nodes/{name}", "state": request.node}) if request.state in BILLED else missing
            return self.look(parent, name)

    def create(self, parent: str, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Grants a request."""
        if name in self.requests:
            return 409, _error(409, "ALREADY_EXISTS", f"Resource '{parent}/queuedResources/{name}' already exists")
        self.requests[name] = Request(body, failure=self.failures.pop(0) if self.failures else "")
        self.created.append(body)
        return 200, {"name": f"{parent}/operations/create-{name}", "done": False}

    def look(self, parent: str, name: str) -> tuple[int, dict[str, Any]]:
        """Shows a request, and moves it on by one state."""
        request = self.requests[name]
        state: dict[str, Any] = {"state": request.state}
        if request.state == "FAILED":
            state["failedData"] = {"error": {"code": 8, "message": request.failure}}
        answer = {"name": f"{parent}/queuedResources/{name}", **request.body, "state": state}
        if request.state == "DELETING":
            del self.requests[name]
        elif request.state == "SUSPENDING":
            request.state = "SUSPENDED"
        elif request.failure and request.state == "CREATING":
            request.state = "FAILED"
        elif request.state in ("CREATING", *QUEUE[:-1]):
            left = QUEUE if request.state == "CREATING" else QUEUE[QUEUE.index(request.state) + 1 :]
            request.state = left[-1 if self.quick else 0]
            if request.state == "ACTIVE":
                request.node = "READY"
                request.vms = [self.start(request.body, worker) for worker in range(self.hosts)]
        return 200, answer

    def start(self, body: dict[str, Any], worker: int) -> Vm:
        """Starts a VM: its metadata server, then its start-up script."""
        attributes = {**body["tpu"]["nodeSpec"][0]["node"]["metadata"], "agent-worker-number": str(worker)}

        class Metadata(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key = self.path.removeprefix("/computeMetadata/v1/instance/")
                value = attributes.get(key.removeprefix("attributes/")) if key.startswith("attributes/") else None
                if key == "service-accounts/default/token":
                    value = '{"access_token":"ya29.token","expires_in":3599,"token_type":"Bearer"}'
                if self.headers.get("Metadata-Flavor") != "Google" or value is None:
                    self.send_error(404 if self.headers.get("Metadata-Flavor") == "Google" else 403)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(value.encode())))
                self.end_headers()
                self.wfile.write(value.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = _served(Metadata)
        script = self.folder / f"startup-{len(self.created)}-{worker}.sh"
        script.write_text(attributes["startup-script"])
        environment = {**self.environment, "METADATA_HOST": f"127.0.0.1:{server.server_port}", "FAKE_FOLDER": str(self.folder)}
        with (self.folder / "console.log").open("ab") as console:
            process = subprocess.Popen(
                ["bash", str(script)], env=environment, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
            )
        return Vm(process, server)


@contextmanager
def running(folder: Path, environment: dict[str, str]) -> Iterator[FakeTpu]:
    """The service, in a thread of this process; its VMs end with it.

    Args:
      folder: for scripts and logs; `folder/bin/docker` is made there.
      environment: of the VMs' processes, without PATH for docker, which is added.
    """
    (folder / "bin").mkdir(parents=True)
    docker = folder / "bin" / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    service = FakeTpu(folder, {**environment, "PATH": f"{docker.parent}:{environment['PATH']}"})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            address = urllib.parse.urlparse(self.path)
            query = {key: values[0] for key, values in urllib.parse.parse_qs(address.query).items()}
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            code, value = service.answer(self.command, address.path, query, body)
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 as the base class names them

        def log_message(self, *_: object) -> None:
            pass

    server = _served(Handler)
    service.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield service
    finally:
        with service.lock:
            for request in service.requests.values():
                service.kill(request)
        server.shutdown()
        server.server_close()


def _served(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def _error(code: int, status: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status}}
