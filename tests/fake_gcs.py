"""A small Google Cloud Storage on loopback: as much of its JSON interface as TensorStore's `gcs` driver uses.

Objects are read (whole or by range), uploaded with or without a condition on their generation, listed in pages between
two names, and deleted.  `TENSORSTORE_GCS_HTTP_URL` makes the driver ask here.
"""

import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = 50  # names per page of a listing, so that there is more than one


class FakeGcs:
    """Buckets in memory.

    objects: (bucket, name) -> (generation, content).   uploads: names, in order.
    refuse: of a request (method, name) whether it is answered with 403.
    """

    def __init__(self):
        self.objects, self.uploads, self.generation, self.lock = {}, [], 0, threading.Lock()
        self.refuse = lambda method, name: False
        handler = type("Handler", (_Handler,), {"gcs": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def names(self, bucket):
        return sorted(name for b, name in list(self.objects) if b == bucket)

    def text(self, bucket, name):
        return self.objects[bucket, name][1].decode()

    # ------------------------------------------------------------------------------------------------------ requests
    def upload(self, bucket, query, body):
        key = (bucket, query["name"])
        wanted = query.get("ifGenerationMatch")
        with self.lock:
            if wanted is not None and int(wanted) != self.objects.get(key, (0,))[0]:
                return 412, b"{}", {}
            self.generation += 1
            self.objects[key] = (self.generation, body)
            self.uploads.append(query["name"])
        return 200, json.dumps({"name": key[1], "generation": str(self.generation)}).encode(), {}

    def listing(self, bucket, query):
        start, end = query.get("startOffset", ""), query.get("endOffset")
        start = max(start, query.get("pageToken", ""))
        found = [n for n in self.names(bucket) if n >= start and (end is None or n < end)]
        answer = {"items": [{"name": n, "size": str(len(self.objects[bucket, n][1]))} for n in found[:PAGE]]}
        if len(found) > PAGE:
            answer["nextPageToken"] = found[PAGE]
        return 200, json.dumps(answer).encode(), {}

    def read(self, bucket, name, wanted_range):
        if (bucket, name) not in self.objects:
            return 404, b"{}", {}
        generation, body = self.objects[bucket, name]
        headers = {"x-goog-generation": str(generation)}
        if not (found := re.fullmatch(r"bytes=(\d*)-(\d*)", wanted_range or "")):
            return 200, body, headers
        first, last = found.groups()
        begin = int(first) if first else max(0, len(body) - int(last))
        end = min(len(body), int(last) + 1) if first and last else len(body)
        if begin >= len(body):
            return 416, b"", {}
        return 206, body[begin:end], headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(body)}"}

    def delete(self, bucket, name, query):
        with self.lock:
            found = self.objects.get((bucket, name))
            if found is None:
                return 404, b"{}", {}
            if query.get("ifGenerationMatch", str(found[0])) != str(found[0]):
                return 412, b"{}", {}
            del self.objects[bucket, name]
        return 204, b"", {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer in one piece: two would wait for each other
    gcs: FakeGcs

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        bucket, name = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", parts.path).groups()
        name = urllib.parse.unquote(name or "") or query.get("name", "")
        if self.gcs.refuse(self.command, name):
            status, content, headers = 403, b'{"error": {"message": "no permission"}}', {}
        elif self.command == "POST":
            status, content, headers = self.gcs.upload(bucket, query, body)
        elif self.command == "DELETE":
            status, content, headers = self.gcs.delete(bucket, name, query)
        elif name:
            status, content, headers = self.gcs.read(bucket, name, self.headers.get("Range"))
        else:
            status, content, headers = self.gcs.listing(bucket, query)
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass
