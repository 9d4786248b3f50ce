"""A W&B server on 127.0.0.1 that keeps what clients send: enough of the protocol for wandb.init, log and finish."""

from __future__ import annotations

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
    def config(self) -> dict[str, Any]:
        """The last config, without wandb's own entry."""
        sent = [json.loads(upsert["config"]) for upsert in self.upserts if upsert.get("config")]
        return {key: entry["value"] for key, entry in sent[-1].items() if key != "_wandb"}


class Loopback:
    """The server, a context manager. It answers every request with `status`.

    With None it closes each connection without an answer; with "hang" each request waits until `status` changes.
    """

    def __init__(self, status: int | str | None = 200) -> None:
        self.status = status
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
            name = variables["name"]
            inserted = name not in self.runs
            run = self.runs.setdefault(name, ServerRun())
            run.upserts.append(variables)
            return {"data": {"upsertBucket": {"bucket": self._bucket(name, run), "inserted": inserted}}}
        if "RunResumeStatus" in query:
            run = self.runs.get(variables["name"])
            bucket = self._bucket(variables["name"], run) if run else None
            return {"data": {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket}}}
        return {"errors": [{"message": "not implemented here"}]}

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
                if (status := loopback.status) is None:
                    self.close_connection = True
                    return
                reply = loopback.answer(self.path, body) if status == 200 else {"error": "no"}
                payload = json.dumps(reply).encode()
                self.send_response(int(status))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: object) -> None:
                """Keeps stderr clean."""

        return Handler
