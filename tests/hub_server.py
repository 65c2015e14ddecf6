"""A stand-in for the Hugging Face hub: an HTTP server with what uploads and downloads of models need."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789" * 4
"""Every repository has this one commit."""


class StandInHub(ThreadingHTTPServer):
    """Repositories, each as a folder of files in memory; `private` has the names of private ones."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.account = {"name": "somebody", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}
        self.broken = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            self._answer(self.server.account)
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            files = self.server.repositories.get(match[1], {})
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()
            ]
            self._answer(entries)
        elif match := re.match(r"/api/models/([^/]+/[^/?]+)", self.path):
            exists = match[1] in self.server.repositories
            self._answer({"id": match[1], "sha": COMMIT, "siblings": []} if exists else {}, 200 if exists else 404)
        elif match := re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            self._file(match[1], match[2].partition("?")[0])
        else:
            self._answer({}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.broken:
            self._answer({"error": "the hub is down"}, 403)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({}, 404)

    def _create(self, request: dict) -> None:
        name = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
        if name in self.server.repositories:
            self._answer({"url": f"{self.server.address}/{name}"}, 409)
            return
        self.server.repositories[name] = {}
        if request.get("private") or request.get("visibility") == "private":
            self.server.private.add(name)
        self._answer({"url": f"{self.server.address}/{name}"})

    def _commit(self, name: str, operations: list[dict]) -> None:
        files = self.server.repositories[name]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        self._answer(
            {"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        )

    def _file(self, repository: str, name: str) -> None:
        data = self.server.repositories.get(repository, {}).get(name)
        if data is None:
            self._answer({}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self.send_response(200)
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return sha1(data).hexdigest()


@contextmanager
def stand_in_hub(monkeypatch, cache) -> Iterator[StandInHub]:
    """While open, huggingface_hub talks to the stand-in, with a token, and downloads into the folder `cache`."""
    server = StandInHub()
    thread = Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it would remember another address
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
