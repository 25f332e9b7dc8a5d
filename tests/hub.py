"""A stand-in of the Hugging Face Hub: repositories in memory, by the API that its client speaks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_a-token-that-nobody-has"


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Hub(ThreadingHTTPServer):
    """`files` of each repository by path, and what was asked, with its head."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.unwell = 0  # answers that are 503 before all is well

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str) -> str:
        whole = json.dumps({path: data.hex() for path, data in self.files[name].items()})
        return sha1(whole.encode())


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any = None, code: int = 200, **head: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        for key, one in head.items():
            self.send_header(key.replace("_", "-"), one)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refused(self) -> bool:
        self.server.asked.append((self.command, self.path))
        if self.server.unwell:
            self.server.unwell -= 1
            self.answer({"error": "unwell"}, 503)
            return True
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and self.command == "POST":
            self.answer({"error": "who are you?"}, 401)
            return True
        return False

    def do_POST(self) -> None:
        body = self.body()
        if self.refused():
            return
        if self.path == "/api/repos/create":
            about = json.loads(body)
            name = "/".join(filter(None, [about.get("organization"), about["name"]]))
            if name in self.server.files:
                self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
                return
            self.server.files[name] = {}
            self.answer({"url": f"{self.server.url}/{name}"})
        elif self.path == "/api/validate-yaml":  # of the card's front matter
            about = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            missing = [] if about.get("license") else [{"message": "no license"}]
            self.answer({"errors": missing, "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path.split("?")[0]):
            paths = [one["path"] for one in json.loads(body)["files"]]
            self.answer(
                {
                    "files": [
                        {"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths
                    ]
                }
            )
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path.split("?")[0]):
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    value = one["value"]
                    self.server.files[found[1]][value["path"]] = base64.b64decode(value["content"])
            oid = self.server.commit(found[1])
            url = f"{self.server.url}/{found[1]}/commit/{oid}"
            self.answer({"commitUrl": url, "commitOid": oid, "success": True})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        if self.refused():
            return
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            name = found[1]
            if name not in self.server.files:
                self.answer({"error": "no such repository"}, 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": one} for one in self.server.files[name]]
            self.answer({"id": name, "sha": self.server.commit(name), "siblings": siblings})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            each = self.server.files[found[1]].items()
            self.answer(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": sha1(data)}
                    for path, data in each
                ]
            )
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            data = self.server.files.get(found[1], {}).get(found[3])
            if data is None:
                self.answer({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
                return
            tag = f'"{sha1(data)}"'
            self.answer(data, X_Repo_Commit=self.server.commit(found[1]), ETag=tag)
        else:
            self.answer({"error": self.path}, 404)

    do_HEAD = do_GET


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
