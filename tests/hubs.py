"""A server that speaks as much of two hubs' protocols as their clients ask for here.

Hugging Face's: repositories of files, of which each commit is a revision. Kaggle's: variations of
models, with versions.
"""

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse
from contextlib import contextmanager


class Hub(http.server.ThreadingHTTPServer):
    """`versions` has, by repository or variation, a dict of files for each of its versions.

    `asked` are the names of the files that were fetched, and `gated` the repositories that only
    some may read.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.versions, self.blobs, self.asked, self.gated = {}, {}, [], set()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def add(self, name, files):
        self.versions.setdefault(name, []).append(files)

    def commits(self, name):
        """The versions of a repository by their hashes, the last one last."""
        return {oid(repr(files).encode()): files for files in self.versions[name]}

    @contextmanager
    def running(self):
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()
        try:
            yield self
        finally:
            self.close()

    def close(self):
        self.shutdown()
        self.server_close()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            self.hugging_face_tells(path.removeprefix("api/models/"))
        elif "/resolve/" in path:
            self.hugging_face_sends(path)
        else:
            self.refuse(404)

    do_HEAD = do_GET

    def do_PUT(self):
        self.server.blobs[self.path.strip("/")] = self.content()
        self.reply({})

    def do_POST(self):
        path = urllib.parse.urlsplit(self.path).path.strip("/")
        if path.startswith("api/v1/"):
            getattr(self, "kaggle_" + path.rpartition("/")[2])(json.loads(self.content()))
        else:
            self.hugging_face_writes(path, self.content())

    # Hugging Face's.

    def hugging_face_tells(self, path):
        name, _, rest = (
            path.partition("/revision/") if "/revision/" in path else path.partition("/tree/")
        )
        if name in self.server.gated:
            return self.refuse(403, {"X-Error-Code": "GatedRepo"})
        if name not in self.server.versions:
            return self.refuse(404, {"X-Error-Code": "RepoNotFound"})
        commits = self.server.commits(name)
        commit = [*commits][-1] if rest == "main" else rest
        if commit not in commits:
            return self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        files = commits[commit]
        if "/tree/" in path:
            return self.reply(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
                    for name, data in files.items()
                ]
            )
        self.reply({"id": name, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def hugging_face_sends(self, path):
        name, _, rest = path.partition("/resolve/")
        commit, _, file = rest.partition("/")
        data = self.server.commits(name)[commit][file]
        self.server.asked.append(file)
        self.reply(data, {"ETag": f'"{oid(data)}"', "X-Repo-Commit": commit})

    def hugging_face_writes(self, path, content):
        if path == "api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.versions.setdefault(name, [{}])
            self.reply({"url": f"{self.server.address}/{name}", "id": name})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(content)["files"]
            ]
            self.reply({"files": files})
        elif path.endswith("/commit/main"):
            name = path.removeprefix("api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in content.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            added = {each["path"]: base64.b64decode(each["content"]) for each in files}
            self.server.add(name, {**self.server.versions[name][-1], **added})
            commit = [*self.server.commits(name)][-1]
            url = f"{self.server.address}/{name}/commit/{commit}"
            self.reply({"commitUrl": url, "commitOid": commit})
        else:
            self.reply({})  # such as the check of a README's header

    # Kaggle's.

    def kaggle_GetModel(self, asked):
        self.reply({})

    def kaggle_GetModelInstance(self, asked):
        if variation(asked) not in self.server.versions:
            return self.refuse(404)
        self.reply({"versionNumber": len(self.server.versions[variation(asked)])})

    def kaggle_ListModelInstanceVersionFiles(self, asked):
        files = self.server.versions[variation(asked)][asked["versionNumber"] - 1]
        self.reply({"files": [{"name": name} for name in files], "nextPageToken": ""})

    def kaggle_DownloadModelInstanceVersion(self, asked):
        self.server.asked.append(asked["path"])
        self.reply(
            self.server.versions[variation(asked)][asked["versionNumber"] - 1][asked["path"]]
        )

    def kaggle_StartBlobUpload(self, asked):
        self.reply({"token": asked["name"], "createUrl": f"{self.server.address}/{asked['name']}"})

    def kaggle_CreateModelInstance(self, asked):
        name = variation({**asked, **asked["body"]})
        if name in self.server.versions:
            return self.reply({"error": "there is one", "errorCode": 409})
        tokens = [each["token"] for each in asked["body"]["files"]]
        self.server.add(name, {token: self.server.blobs[token] for token in tokens})
        self.reply({})

    # Answers.

    def content(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def refuse(self, status, headers=()):
        self.reply({"error": "no", "message": "no"}, headers, status)

    def reply(self, value, headers=(), status=200):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        kind = "octet-stream" if isinstance(value, bytes) else "json"
        for name, text in {"Content-Type": f"application/{kind}", **dict(headers)}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def oid(data):
    return hashlib.sha1(data).hexdigest()


def variation(asked):
    return f"{asked['ownerSlug']}/{asked['modelSlug']}/keras/{asked['instanceSlug']}"
