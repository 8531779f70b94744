"""An export goes to the Hugging Face hub and comes back: by the hub's own client, against a server of its protocol."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import distill
from cache_tools import ConfigError
from distill.export.folder import find

STUDENT = Path(__file__).parents[2] / "fixtures" / "v01" / "student"
COMMIT = "c" * 40
PUSH = "import sys; from distill.export.folder import *; print(push_to_hub(Path(sys.argv[1]), 'me/mine', private=True))"
PULL = "from distill.export.folder import *; print(find('me/mine'))"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as one repository needs."""

    files: dict[str, bytes]
    created: dict

    def answer(self, body: object, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def read_body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):  # in chunks
            body += self.rfile.read(size + 2)[:-2]
        return body

    def do_POST(self) -> None:
        body = self.read_body()
        if self.path.endswith("/repos/create"):
            type(self).created = json.loads(body)
            self.answer({"url": "https://huggingface.co/me/mine", "name": "me/mine"})
        elif "/preupload/" in self.path:
            named = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in named]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": "https://huggingface.co/me/mine/commit/" + COMMIT, "commitOid": COMMIT})
        else:  # the front of the card is checked
            self.answer({"warnings": [], "errors": []})

    def do_GET(self) -> None:
        if found := re.match(r"/me/mine/resolve/\w+/(.+)", self.path):
            data = self.files[found[1]]
            self.answer(data, ETag=f'"{sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)
        elif re.match(r"/api/models/me/mine/tree/", self.path):
            self.answer(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}
                    for name, data in self.files.items()
                ]
            )
        elif self.path.startswith("/api/models/me/mine"):
            self.answer({"id": "me/mine", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]})
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path) -> Iterator[dict[str, str]]:
    """The environment of a process whose hub is a server in this one."""
    Hub.files, Hub.created = {}, {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        kept = {
            name: value for name, value in os.environ.items() if "proxy" not in name.lower() and name != "HF_HUB_OFFLINE"
        }
        yield kept | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_TOKEN": "hf_x",
            "HF_HUB_DISABLE_XET": "1",
        }
        server.shutdown()


def run(program: str, environment: dict[str, str], folder: Path, *words: str) -> str:
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_student_goes_to_the_hub_and_comes_back(hub, tmp_path):
    assert run(PUSH, hub, tmp_path, str(STUDENT)).endswith(COMMIT)
    assert Hub.created.get("private") or Hub.created["visibility"] == "private"
    assert {"config.json", "model.safetensors", "README.md"} <= set(Hub.files)
    Hub.files["code.py"] = b"raise SystemExit('code of the hub ran')"
    folder = Path(run(PULL, hub, tmp_path))
    assert {path.name for path in folder.iterdir()} == {path.name for path in STUDENT.iterdir()}, "no code is downloaded"
    here, back = (distill.load_student(place, "cpu").embed(["CCO"]) for place in (STUDENT, folder))
    assert here.equal(back)


def test_a_name_that_is_neither_here_nor_on_the_hub_says_both(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"no export at .*nobody/nothing: expected config.json there; .*hub gives none"):
        find("nobody/nothing")
