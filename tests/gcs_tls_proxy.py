"""A proxy before the emulator: it ends the TLS by which TensorFlow asks for *.googleapis.com, and can let things go wrong.

TensorFlow takes no other address for Cloud Storage, but its HTTP library takes a proxy and a certificate authority from the
environment. Google's client and GDAL find the emulator by its address (`gcs_emulator`); where faults are wanted for them too
(`gcs_faults`), they are given the proxy's address instead.
"""

import http.client
import io
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from gcs_emulator import Emulator, free_port, wait_until_open
from gcs_faults import OF_BODIES, SMALLEST_BODY, Dealer, Fault, Plan, log_of

HOSTS = ("www.googleapis.com", "storage.googleapis.com", "*.storage.googleapis.com", "oauth2.googleapis.com")
# Of one connection, not of what is passed on.
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "proxy-authorization", "transfer-encoding", "te", "upgrade"}
PIECES, PIECE_S = 8, 0.03  # of a slow body: a quarter of a second


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy.

    Attributes:
      url: for clients that take an address.
      log: of faults.
      tensorflow: the environment by which TensorFlow finds it; other clients ask the emulator itself.
      everybody: the environment by which all clients find it.
    """

    url: str
    log: Path
    tensorflow: dict[str, str]
    everybody: dict[str, str]

    def plan(self, plan: Plan) -> int:
        """Lets things go wrong from now on; returns where the log stands."""
        urllib.request.urlopen(f"{self.url}/_faults", data=plan.as_json()).close()
        return len(self.faults())

    def faults(self, since: int = 0) -> list[Fault]:
        """What went wrong, from the `since`th on."""
        return log_of(self.log, since)


@contextmanager
def running(folder: Path, emulator: Emulator) -> Iterator[Proxy]:
    """A proxy in a process of its own, through which all goes well until a plan says otherwise."""
    port, authority, log = free_port(), folder / "authority.pem", folder / "faults.jsonl"
    log.touch()
    argv = [sys.executable, __file__, str(port), emulator.url.removeprefix("http://"), str(authority), str(log)]
    process = subprocess.Popen(argv)
    try:
        wait_until_open(port, process)
        url = f"http://127.0.0.1:{port}"
        tls = {"HTTPS_PROXY": url, "https_proxy": url, "CURL_CA_BUNDLE": str(authority), "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x"}
        tensorflow = {**emulator.environment, **tls}
        yield Proxy(url, log, tensorflow, {**tensorflow, "STORAGE_EMULATOR_HOST": url})
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def gcs_proxy(tmp_path_factory: pytest.TempPathFactory, _gcs_server: Emulator) -> Iterator[Proxy]:
    """The proxy; a test that plans faults ends them too (`faulty`)."""
    with running(tmp_path_factory.mktemp("proxy"), _gcs_server) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def tensorflow_gcs(tmp_path_factory: pytest.TempPathFactory, _gcs_server: Emulator) -> Iterator[dict[str, str]]:
    """The environment of a process whose Google clients and TensorFlow both read gs:// from the emulator; all goes well."""
    with running(tmp_path_factory.mktemp("proxy"), _gcs_server) as proxy:
        yield proxy.tensorflow


@pytest.fixture
def faulty(gcs: Emulator, gcs_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy as what gs:// means during this test, here and in its processes; all is well again when it ends."""
    for name, value in gcs_proxy.everybody.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.02")  # the tests have no two seconds for each of GDAL's faults
    yield gcs_proxy
    gcs_proxy.plan(Plan(kinds=()))


def serve(port: int, emulator: str, authority: Path, log: Path) -> None:
    """Listens until the parent is gone."""
    issuer, dealer = trustme.CA(), Dealer(log)
    issuer.cert_pem.write_to_path(str(authority))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(*HOSTS).configure_cert(tls)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_CONNECT(self) -> None:
            host = self.path.split(":")[0]
            if not host.endswith(".googleapis.com"):
                self.send_error(403, "not Cloud Storage")
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self.connection = tls.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb", -1), self.connection.makefile("wb", 0)
            self.close_connection = False

        def relay(self) -> None:
            body = self.body()
            if self.path == "/_faults":
                wanted = json.loads(body)
                dealer.plan(Plan(**{**wanted, "kinds": tuple(wanted["kinds"]), "clients": tuple(wanted["clients"])}))
                self.answer(204, [], b"")
                return
            fault = self.befalls(has_body=False)
            if fault == "reset":
                self.reset()
                return
            if fault in ("503", "429"):
                self.answer(int(fault), [], json.dumps({"error": {"code": int(fault), "message": "as the test asked"}}).encode())
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {*HOP_BY_HOP, "content-length", "expect"}}
            upstream = http.client.HTTPConnection(emulator, timeout=60)
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if fault == "lost":
                self.reset()
                return
            kept = [(key, value) for key, value in answer.getheaders() if key.lower() not in {*HOP_BY_HOP, "content-length"}]
            if self.command == "HEAD":
                self.answer(answer.status, kept, b"", length=answer.getheader("content-length"))
                return
            cuttable = self.command == "GET" and answer.status in (200, 206) and len(content) >= SMALLEST_BODY
            self.answer(answer.status, kept, content, self.befalls(has_body=True) if cuttable else "")

        def befalls(self, *, has_body: bool) -> str:
            """What goes wrong with this request."""
            gdal = self.headers.get("User-Agent", "").startswith("GDAL")
            client = "tensorflow" if isinstance(self.connection, ssl.SSLSocket) else "gdal" if gdal else "google"
            fault = dealer.deal(client, self.command, self.path, self.headers, has_body=has_body)
            assert not fault or (fault in OF_BODIES) == has_body
            return fault

        def answer(
            self, status: int, headers: list[tuple[str, str]], content: bytes, fault: str = "", length: str | None = None
        ) -> None:
            """Sends an answer, as far as the fault lets it."""
            self.send_response_only(status, http.client.responses.get(status))
            for key, value in headers:
                # An upload goes on where the emulator says, which does not know of the TLS.
                onward = key.lower() == "location" and isinstance(self.connection, ssl.SSLSocket)
                self.send_header(key, value.replace("http://", "https://", 1) if onward else value)
            if status != 204:
                self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if fault == "slow":
                step = -(-len(content) // PIECES)
                for start in range(0, len(content), step):
                    self.wfile.write(content[start : start + step])
                    time.sleep(PIECE_S)
                return
            self.wfile.write(content[: len(content) // 2] if fault else content)
            if fault:
                time.sleep(PIECE_S)  # what is sent shall arrive: a reset overtakes it
            if fault == "cut":
                self.reset()
            elif fault == "truncated":
                self.end()

        def reset(self) -> None:
            """Ends the connection as a machine does that has gone: with a reset, not with a farewell."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

        def end(self) -> None:
            """Ends the connection in good order."""
            if isinstance(self.connection, ssl.SSLSocket):
                self.connection.settimeout(1)
                with suppress(OSError):
                    self.connection.unwrap()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close()

        def close(self) -> None:
            for each in (self.rfile, self.wfile, self.connection):
                each.close()
            self.wfile, self.close_connection = io.BytesIO(), True  # the base class flushes it once more

        def body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []  # TensorFlow's uploads
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = relay  # noqa: N815 as the base class names them

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exception(), OSError):  # a client that was killed, or that hung up on a cut body
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    parent = os.getppid()
    while os.getppid() == parent:  # ends with the tests, also where they were killed
        time.sleep(1)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
