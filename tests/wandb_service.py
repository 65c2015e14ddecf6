"""A script that tracks a run in a W&B service which stops in the middle of it. Its argument is the run directory."""

import json
import logging
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from evopress.runtime import tracking
from evopress.runtime.metrics_file import JsonLines

BUCKET = {
    "id": "b",
    "name": "run",
    "displayName": "run",
    "config": "{}",
    "project": {"id": "p", "name": "evopress", "entity": {"id": "e", "name": "me"}},
}
VIEWER = {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}


class Service(BaseHTTPRequestHandler):
    """As much of the W&B server as a run needs to start."""

    received = threading.Event()
    """Set once metrics have arrived."""

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("file_stream"):
            Service.received.set()
            self.answer({})
        elif b"upsertBucket" in body:
            self.answer({"data": {"upsertBucket": {"bucket": BUCKET, "inserted": True}}})
        elif b"createRunFiles" in body:
            self.answer({"errors": [{"message": "no files here"}]})
        else:
            self.answer({"data": VIEWER if b"viewer" in body else {}})

    do_GET = do_POST  # noqa: N815 - http.server requires this name

    def answer(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(folder: Path) -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"WANDB_API_KEY": 40 * "a", "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    tracking.LONGEST_UPLOAD_S = 3.0
    tracker = tracking.Trackers(JsonLines(), tracking.WandB(mode="online"))
    tracker.start(folder, "name", {"seed": 0})
    tracker.log({"search/best_fitness": 1.0}, step=0)
    assert Service.received.wait(60)
    server.shutdown()
    server.server_close()
    for step in (1, 2):
        tracker.log({"search/best_fitness": 1.0 / step}, step=step)
    tracker.summary({"searched/kl": 0.5})
    tracker.finish(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
