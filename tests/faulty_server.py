"""An http server of a folder that answers range requests, with faults on demand."""

import http.server
import re
import socket
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote


class FaultyServer:
    """Serves a folder on a free port of loopback.

    Attributes:
        address: http://127.0.0.1:port.
        faults: what goes wrong with the next GETs, one each, first come first: "503", "reset", "half", "wrong range", "stall",
            "404", "403", "changed", "ignores ranges", "trickle", "busy" (503 with a Retry-After of a second).
        lasting: a fault of every GET, or "".
        most_at_once: requests that were being answered at one time, at most; see hold.
        query: without which every request is refused, or "". authorization: the header without which every one is.
        head: status of every HEAD, or 0.
        bytes_sent: of all bodies.
    """

    def __init__(self, folder):
        self.folder, self.faults, self.lasting, self.bytes_sent = Path(folder), [], "", 0
        self.requests, self.query, self.authorization, self.head = [], "", "", 0
        self.at_once, self.most_at_once, self._held = 0, 0, None
        self._counting = threading.Lock()
        self._closed, self._connections = threading.Event(), set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                outer._connections.add(self.connection)

            def finish(self):
                outer._connections.discard(self.connection)
                super().finish()

            def do_GET(self):
                with outer._counted():
                    outer._wait(self.path)
                    outer._answer(self)

            def do_HEAD(self):
                with outer._counted():
                    outer._answer(self, head=True)

            def log_message(self, *_):
                pass

        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True
        self._httpd.handle_error = lambda *_: None
        self.address = f"http://127.0.0.1:{self._httpd.server_address[1]}"
        threading.Thread(target=self._httpd.serve_forever, daemon=True, name="faulty").start()

    @contextmanager
    def hold(self, suffix, count):
        """Answer GETs of names with the suffix when `count` of them have come, or after 20 s; most_at_once begins anew."""
        self.most_at_once = self.at_once
        self._held = (suffix, threading.Semaphore(count - 1), threading.Event())
        try:
            yield
        finally:
            self._held = None

    def reset(self):
        """No faults any more."""
        self.faults.clear()
        self.lasting = ""

    def close(self):
        """Stop answering, on connections that are open too."""
        self._closed.set()
        self._httpd.shutdown()
        self._httpd.server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended by itself

    @contextmanager
    def _counted(self):
        with self._counting:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._counting:
                self.at_once -= 1

    def _wait(self, path):
        suffix, missing, enough = self._held or (None, None, None)
        if suffix and path.endswith(suffix):
            if not missing.acquire(blocking=False):
                enough.set()
            enough.wait(20.0)

    def _answer(self, request, head=False):
        name, _, query = request.path.lstrip("/").partition("?")
        fault = "" if head else (self.faults.pop(0) if self.faults else self.lasting)
        self.requests.append((request.command, request.path, request.headers.get("Range", "")))
        path = self.folder / unquote(name)
        status = {"503": 503, "busy": 503, "404": 404, "403": 403}.get(fault, 200 if path.is_file() else 404)
        if self.query not in ("", query):
            status = 403
        if self.authorization not in ("", request.headers.get("Authorization", "")):
            status = 401
        status = self.head if head and self.head else status
        if fault == "reset":
            return self._reset(request)
        if fault == "stall":
            self._closed.wait(3.0)
            return self._reset(request)
        if status != 200:
            return self._send(request, status, b"", {"Retry-After": "1"} if fault == "busy" else {}, head)
        data = path.read_bytes()
        etag = f'"{path.stat().st_size}-{path.stat().st_mtime_ns}{"-new" * (fault == "changed")}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not match or fault == "ignores ranges":
            return self._send(request, 200, data, headers, head, fault)
        start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        if fault == "wrong range":
            start, end = start + 512, end + 512
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(request, 206, data[start : end + 1], headers, head, fault)

    def _send(self, request, status, body, headers, head=False, fault=""):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if head:
            return
        if fault == "trickle":
            return self._trickle(request, body)
        half = fault == "half"
        request.wfile.write(body[: len(body) // 2] if half else body)
        self.bytes_sent += len(body)
        if half:
            request.wfile.flush()
            time.sleep(0.05)
            self._reset(request)

    def _trickle(self, request, body):
        """Ten bytes per second, for as long as somebody waits for them."""
        for place in range(len(body)):
            request.wfile.write(body[place : place + 1])
            if self._closed.wait(0.1):
                return

    @staticmethod
    def _reset(request):
        """End the connection the hard way, with RST."""
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.close_connection = True
        request.connection.close()
