"""Lets TensorFlow's own gs:// reach the emulator: a proxy that ends the TLS of *.googleapis.com and passes requests on.

TensorFlow takes no other address for Cloud Storage, but its HTTP library takes a proxy and a certificate authority from the
environment. Google's client finds the emulator by itself (`gcs_emulator`) and needs no proxy.
"""

import http.client
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from gcs_emulator import Emulator, free_port, wait_until_open

HOSTS = ("www.googleapis.com", "storage.googleapis.com", "*.storage.googleapis.com", "oauth2.googleapis.com")
# Of one connection, not of what is passed on.
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "proxy-authorization", "transfer-encoding", "te", "upgrade"}


@contextmanager
def running(folder: Path, emulator: Emulator) -> Iterator[dict[str, str]]:
    """A proxy in a process of its own; yields the environment by which TensorFlow finds it."""
    port, authority = free_port(), folder / "authority.pem"
    process = subprocess.Popen([sys.executable, __file__, str(port), emulator.url.removeprefix("http://"), str(authority)])
    try:
        wait_until_open(port, process)
        proxy = f"http://127.0.0.1:{port}"
        yield {
            "HTTPS_PROXY": proxy,
            "https_proxy": proxy,
            "CURL_CA_BUNDLE": str(authority),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        }
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def tensorflow_gcs(tmp_path_factory: pytest.TempPathFactory, _gcs_server: Emulator) -> Iterator[dict[str, str]]:
    """The environment of a process whose Google clients and TensorFlow both read gs:// from the emulator."""
    with running(tmp_path_factory.mktemp("proxy"), _gcs_server) as environment:
        yield {**_gcs_server.environment, **environment}


def serve(port: int, emulator: str, authority: Path) -> None:
    """Listens until the parent is gone."""
    issuer = trustme.CA()
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
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {*HOP_BY_HOP, "content-length", "expect"}}
            upstream = http.client.HTTPConnection(emulator, timeout=60)
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response_only(answer.status, answer.reason)
            for key, value in answer.getheaders():
                if key.lower() not in {*HOP_BY_HOP, "content-length"}:
                    # An upload goes on where the emulator says, which does not know of the TLS.
                    self.send_header(key, value.replace("http://", "https://", 1) if key.lower() == "location" else value)
            length = answer.getheader("content-length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            upstream.close()

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

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    parent = os.getppid()
    while os.getppid() == parent:  # ends with the tests, also where they were killed
        time.sleep(1)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
