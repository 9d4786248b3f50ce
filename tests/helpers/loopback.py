"""A W&B server on 127.0.0.1 that keeps what clients send, and answers wandb.init, log, finish and its public API."""

from __future__ import annotations

import copy
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hpstudy.files import to_json

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class ServerRun:
    """One run on the server. `lines` holds the streamed lines of each file."""

    upserts: list[dict[str, Any]] = field(default_factory=list)  # the variables of each UpsertBucket
    lines: dict[str, dict[int, str]] = field(default_factory=dict)  # file -> offset -> line
    exitcode: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows in the order of their offsets."""
        return [json.loads(line) for _, line in sorted(self.lines.get(HISTORY, {}).items())]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        lines = self.lines.get(SUMMARY)
        return json.loads(lines[max(lines)]) if lines else {}

    @property
    def group(self) -> str:
        """The last group."""
        return ["", *(upsert["groupName"] for upsert in self.upserts if upsert.get("groupName"))][-1]

    @property
    def tags(self) -> list[str]:
        """The last tags."""
        return [[], *(upsert["tags"] for upsert in self.upserts if upsert.get("tags") is not None)][-1]

    @property
    def config(self) -> dict[str, Any]:
        """The last config, without wandb's own entry."""
        sent = [json.loads(upsert["config"]) for upsert in self.upserts if upsert.get("config")]
        return {key: entry["value"] for key, entry in sent[-1].items() if key != "_wandb"}


class Loopback:
    """The server, a context manager. It answers every request with `status`.

    With None it closes each connection without an answer; with "hang" each request waits until `status` changes; with
    "html" it answers as a proxy's page would; with "half" it announces more than it sends; with "dropped" it answers
    as if it had stored what it forgets. `faults` has the status of single requests by their number, from 0.
    """

    def __init__(self, status: int | str | None = 200) -> None:
        self.status = status
        self.faults: dict[int, int | str | None] = {}
        self.requests = 0
        self.runs: dict[str, ServerRun] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Loopback:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to one POST."""
        if path == "/graphql":
            return self.graphql(body["query"], body.get("variables") or {})
        if path.endswith("/file_stream"):
            return self._file_stream(path.split("/")[-2], body)
        return {}

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The reply to one GraphQL query. Subclasses answer more queries."""
        if "upsertBucket" in query:
            name = variables.get("name") or variables["id"]  # the public API changes a run by its id
            inserted = name not in self.runs
            run = self.runs.setdefault(name, ServerRun())
            run.upserts.append(variables)
            return {"data": {"upsertBucket": {"bucket": self._bucket(name, run), "inserted": inserted}}}
        if "RunResumeStatus" in query:
            run = self.runs.get(variables["name"])
            bucket = self._bucket(variables["name"], run) if run else None
            return {"data": {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket}}}
        if "query Run(" in query:
            run = self.runs.get(variables["name"])
            return {"data": {"project": {"run": self.node(variables["name"], run) if run else None}}}
        if "RunHistoryKeys" in query:
            steps = [row["_step"] for row in self.runs[variables["name"]].history]
            return {"data": {"project": {"run": {"historyKeys": {"lastStep": max(steps, default=-1)}}}}}
        if "query Runs(" in query:
            group = json.loads(variables["filters"])["group"]
            found = [self.node(name, run) for name, run in self.runs.items() if run.group == group]
            page = {
                "edges": [{"node": node, "cursor": node["id"]} for node in found],
                "pageInfo": {"hasNextPage": False},
            }
            return {"data": {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": page}}}
        if "RunParquetHistory" in query:
            return {"data": {"project": {"run": {"parquetHistory": {"liveData": [], "parquetUrls": []}}}}}
        if "HistoryPage" in query:
            steps = range(variables["minStep"], variables["maxStep"])
            page = [json.dumps(row) for row in self.runs[variables["run"]].history if row["_step"] in steps]
            return {"data": {"project": {"run": {"history": page}}}}
        if "query Viewer" in query or "query GetDefaultEntity" in query:
            viewer = {"id": "u", "entity": "e", "username": "u", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer}}
        return {"errors": [{"message": "not implemented here"}]}

    @staticmethod
    def node(name: str, run: ServerRun) -> dict[str, Any]:
        """A run as wandb's public API reads it."""
        return {
            "id": name,
            "projectId": "1",
            "name": name,
            "state": {None: "running", 0: "finished"}.get(run.exitcode, "failed"),
            "group": run.group,
            "tags": run.tags,
            "description": "",
            "notes": "",
            "displayName": name,
            "jobType": run.upserts[0].get("jobType"),
            "config": [upsert["config"] for upsert in run.upserts if upsert.get("config")][-1],
            "historyLineCount": len(run.lines.get(HISTORY, {})),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "user": {"name": "u", "username": "u"},
        }

    @staticmethod
    def _bucket(name: str, run: ServerRun) -> dict[str, Any]:
        tail = [to_json(row) for row in run.history[-1:]]
        return {
            "id": name,
            "name": name,
            "displayName": name,
            "description": "",
            "config": run.upserts[-1].get("config") or "{}",
            "sweepName": "",
            "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
            "historyLineCount": len(run.lines.get(HISTORY, {})),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "summaryMetrics": to_json(run.summary),
            "tags": [],
            "notes": "",
            "wandbConfig": '{"t": 1}',
        }

    def _file_stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        for file, chunk in (body.get("files") or {}).items():
            lines = run.lines.setdefault(file, {})
            lines.update(enumerate(chunk["content"], start=chunk["offset"]))
        if body.get("complete"):
            run.exitcode = body.get("exitcode")
        return {"exitcode": None, "limits": {}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                while loopback.status == "hang":
                    time.sleep(0.02)
                status = loopback.faults.get(loopback.requests, loopback.status)
                loopback.requests += 1
                if status is None:
                    self.close_connection = True
                    return
                before = copy.deepcopy(loopback.runs) if status == "dropped" else None
                taken = status in (200, "dropped", "half")
                try:
                    reply = loopback.answer(self.path, body) if taken else {"error": "no"}
                except KeyError:  # of a run whose beginning was dropped
                    reply, status = {"error": "no such run"}, 404
                if before is not None:
                    loopback.runs = before
                payload = b"<html>Please log in</html>" if status == "html" else json.dumps(reply).encode()
                self.send_response(200 if isinstance(status, str) else status)
                self.send_header("Content-Type", "text/html" if status == "html" else "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload[: len(payload) // 2] if status == "half" else payload)
                self.close_connection = self.close_connection or status == "half"

            def log_message(self, *_: object) -> None:
                """Keeps stderr clean."""

        return Handler
