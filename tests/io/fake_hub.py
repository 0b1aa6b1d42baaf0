"""A small Hugging Face hub on loopback: as much of its HTTP interface as fetching and uploading files needs."""

import base64
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".safetensors", ".npz", ".pt")  # kept as large files (LFS) on the real hub


class FakeHub:
    """Repositories in memory.

    repos: repository -> commit -> path -> bytes.   refs: repository -> branch -> commit.   asked: requests, in order.
    damaged: paths served with one byte changed.   cut: paths served with half of their bytes.   failing: path ->
    (status, error code) for anything whose URL contains it.
    """

    def __init__(self):
        self.repos, self.refs, self.asked, self.objects = {}, {}, [], {}
        self.damaged, self.cut, self.failing = set(), set(), {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def commit(self, repo, files, branch="main"):
        """A new commit with exactly these files; returns its id."""
        flat = json.dumps([repo, branch, sorted((p, hashlib.sha1(b).hexdigest()) for p, b in files.items())])
        commit = hashlib.sha1(flat.encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.refs.setdefault(repo, {})[branch] = commit
        return commit

    def fetched(self):
        """Paths of files whose bytes were asked for since the last call."""
        paths = [url.split("/", 5)[5] for method, url in self.asked if method == "GET" and "/resolve/" in url]
        self.asked.clear()
        return sorted(paths)


def entry(path, data):
    found = {"type": "file", "path": path, "size": len(data)}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {**found, "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code=None):
        self.answer(status, {"error": "no"}, **({"X_Error_Code": code} if code else {}))

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def files(self, repo, revision):
        if repo not in self.hub.repos:
            return self.refuse(404, "RepoNotFound"), None
        commit = self.hub.refs[repo].get(revision, revision)
        if commit not in self.hub.repos[repo]:
            return self.refuse(404, "RevisionNotFound"), None
        return commit, self.hub.repos[repo][commit]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path).strip("/")
        self.hub.asked.append((self.command, "/" + path))
        for part, (status, code) in self.hub.failing.items():
            if part in path:
                return self.refuse(status, code)
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            return self.api("/".join(parts[2:4]), *(parts[4:] or ["revision", "main"]))
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.refuse(404)

    def api(self, repo, what, revision, *rest):
        commit, files = self.files(repo, revision)
        if files is None:
            return None
        if what == "revision":
            return self.answer(200, {"id": repo, "sha": commit, "_id": "0"})
        folder = "/".join(rest)
        inside = {p: b for p, b in files.items() if not folder or p.startswith(folder + "/")}
        if not inside:
            return self.refuse(404, "EntryNotFound")
        names = {p[len(folder) + bool(folder) :].split("/")[0]: p for p in inside}
        found = []
        for name, p in sorted(names.items()):
            full = f"{folder}/{name}".strip("/")
            found.append(entry(p, files[p]) if full == p else {"type": "directory", "path": full, "oid": "0" * 40})
        half = (len(found) + 1) // 2  # in two pages, as a long listing comes
        if len(found) > 1 and "cursor" not in self.path:
            return self.answer(200, found[:half], Link=f'<{self.hub.url}{self.path}&cursor=1>; rel="next"')
        return self.answer(200, found[half:] if len(found) > 1 else found)

    def resolve(self, repo, revision, path):
        commit, files = self.files(repo, revision)
        if files is None:
            return None
        if path not in files:
            return self.refuse(404, "EntryNotFound")
        data, about = files[path], entry(path, files[path])
        etag = about["lfs"]["oid"] if "lfs" in about else about["oid"]
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit, "X_Linked_Size": len(data)}
        if path in self.hub.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        if path in self.hub.cut and self.command == "GET":
            data = data[: len(data) // 2]
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])  # older clients resume
        return self.answer(206 if start else 200, data[start:], **headers)

    def do_POST(self):
        path, body = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/"), self.body()
        self.hub.asked.append(("POST", "/" + path))
        for part, (status, code) in self.hub.failing.items():
            if part in path:
                return self.refuse(status, code)
        parts = path.split("/")
        if path == "api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.hub.repos:
                return self.answer(409, {"error": "exists", "url": f"{self.hub.url}/{repo}"})
            self.hub.commit(repo, {})
            return self.answer(200, {"url": f"{self.hub.url}/{repo}", "id": repo})
        if path.endswith("info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for o in objects:
                o["actions"] = {"upload": {"href": f"{self.hub.url}/object/{o['oid']}"}}
            return self.answer(200, {"objects": objects, "transfer": "basic"})
        repo, what, revision = "/".join(parts[2:4]), parts[4], parts[5]
        commit, files = self.files(repo, revision)
        if files is None:
            return None
        if what == "paths-info":
            found = []
            for p in urllib.parse.parse_qs(body.decode())["paths"]:
                if p in files:
                    found.append(entry(p, files[p]))
                elif any(f.startswith(p + "/") for f in files):
                    found.append({"type": "directory", "path": p, "oid": "0" * 40})
            return self.answer(200, found)
        if what == "preupload":
            mode = lambda p: "lfs" if p.endswith(LARGE) else "regular"  # noqa: E731
            asked = [f["path"] for f in json.loads(body)["files"]]
            return self.answer(
                200, {"files": [{"path": p, "uploadMode": mode(p), "shouldIgnore": False} for p in asked]}
            )
        new = dict(files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                new[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.commit(repo, new, revision)
        return self.answer(
            200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True}
        )

    def do_PUT(self):
        self.hub.objects[self.path.rsplit("/", 1)[1]] = self.body()
        self.answer(200)
