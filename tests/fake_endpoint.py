"""A chat endpoint on loopback, over real HTTP: it looks at the pixels it is sent, and misbehaves as a script says.

Each question names a colour; the reply has the box of every rectangle of that colour in the picture, in the convention
the endpoint speaks. A re-check is answered `keep`. `script(call)` may answer anything else for a call.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image, ImageColor

CREATED = 1_790_000_000


@dataclass
class Call:
    """One request as it came."""

    number: int
    body: dict
    headers: dict

    @property
    def once(self):
        return self.headers.get("idempotency-key")

    @property
    def system(self):
        return self.body["messages"][0]["content"]

    @property
    def text(self):
        return "\n".join(part["text"] for part in self.body["messages"][1]["content"] if part["type"] == "text")

    @property
    def question(self):
        return json.loads(re.search(r"^(?:question|problem): (.*)$", self.text, flags=re.M)[1])

    @property
    def kind(self):
        if "Where is each" in self.text:
            return "probe"
        return "recheck" if "reference_answer" in self.text else "generate"

    @property
    def uris(self):
        return [p["image_url"]["url"] for p in self.body["messages"][1]["content"] if p["type"] == "image_url"]

    @property
    def images(self):
        return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in self.uris]


@dataclass
class Say:
    """A complete reply."""

    text: str | None = ""
    finish: str | None = "stop"
    refusal: str | None = None
    usage: dict | None = field(default_factory=lambda: {"prompt_tokens": 1000, "completion_tokens": 100})
    after: float = 0.0


@dataclass
class Status:
    """Another status, or another body."""

    code: int
    body: str = '{"error": {"message": "no"}}'
    headers: dict = field(default_factory=dict)
    content_type: str = "application/json"


HANG, RESET, DRIP = "hang", "reset", "drip"


def boxes_of(image, colour):
    """Boxes (px) of the rectangles of one colour, which share no column."""
    apart = np.abs(np.asarray(image.convert("RGB")).astype(int) - ImageColor.getrgb(colour)).max(axis=2)
    mask = apart < 60
    columns = np.flatnonzero(mask.any(axis=0))
    runs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1) if len(columns) else []
    boxes = []
    for run in runs:
        rows = np.flatnonzero(mask[:, run].any(axis=1))
        boxes.append((int(run[0]), int(rows[0]), int(run[-1]) + 1, int(rows[-1]) + 1))
    return boxes


def speak(box, size, convention):
    """A box (px) in a convention, with its key."""
    (x0, y0, x1, y1), (w, h) = box, size
    rel = [x0 / w, y0 / h, x1 / w, y1 / h]
    if convention == "gemini":
        return {"box_2d": [round(1000 * rel[i]) for i in (1, 0, 3, 2)]}
    if convention == "rel1":
        return {"bbox": [round(edge, 4) for edge in rel]}
    if convention == "px":
        return {"bbox": list(box)}
    if convention == "qwen2_5":
        return {"bbox_2d": list(box)}
    return {"bbox_2d": [round(1000 * edge) for edge in rel]}


class FakeEndpoint:
    """`calls` are all requests, `completed` the Idempotency-Keys of the replies that were sent to the end."""

    def __init__(self, script=None, convention="qwen3"):
        self.script, self.convention = script, convention
        self.calls: list[Call] = []
        self.completed: list[str] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.at_once = self.most_at_once = 0

    def honest(self, call):
        """What a good model says."""
        if call.kind == "recheck":
            parts = re.search(r"^(?:boxes|steps): (.*)$", call.text, flags=re.M)[1]
            return Say(json.dumps(verdict(len(json.loads(parts)), "steps" if "steps: [" in call.text else "regions")))
        if not call.images:
            return Say(json.dumps({"steps": ["Add the two numbers."], "reason": ""}))
        colour = re.search(r"\b(red|green|blue)\b", call.question)[1]
        regions = []
        for number, image in enumerate(call.images, start=1):
            for box in boxes_of(image, colour):
                many = {"image": number} if len(call.images) > 1 else {}
                regions.append({"label": "rectangle", **speak(box, image.size, self.convention), **many})
        return Say(json.dumps({"regions": regions, "reason": ""}))

    def of(self, kind):
        return [call for call in self.calls if call.kind == kind]

    @contextlib.contextmanager
    def serving(self):
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with contextlib.suppress(ConnectionError):
                    endpoint._answer(self)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            self.closing.set()
            server.shutdown()
            server.server_close()

    def _answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            call = Call(len(self.calls), body, headers)
            self.calls.append(call)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            action = (self.script(call) if self.script else None) or self.honest(call)
            self._act(handler, call, action)
        finally:
            with self.lock:
                self.at_once -= 1

    def _act(self, handler, call, action):
        if action == HANG:
            self.closing.wait(5)
            handler.close_connection = True
            return
        if action in (RESET, DRIP):
            handler.send_response(200)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", "100000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.wfile.flush()
            ends = time.monotonic() + 5
            while action == DRIP and not self.closing.wait(0.02) and time.monotonic() < ends:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            if action == RESET:  # RST instead of FIN
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                handler.connection.close()
            handler.close_connection = True
            return
        if isinstance(action, Say):
            time.sleep(action.after)
            message = {"role": "assistant", "content": action.text, "refusal": action.refusal}
            reply = {
                "id": "x", "object": "chat.completion", "created": CREATED, "model": call.body["model"],
                "choices": [{"index": 0, "finish_reason": action.finish, "message": message}],
            }  # fmt: skip
            action = Status(200, json.dumps(reply | ({"usage": action.usage} if action.usage else {})))
        data = action.body.encode()
        handler.send_response(action.code)
        for name, value in {"content-type": action.content_type, "content-length": len(data), **action.headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()
        if action.code == 200:
            with self.lock:
                self.completed.append(call.once)


def verdict(count, name="regions", **changes):
    """A re-check that keeps everything, but for `changes`."""
    good = {"regions": {"present": True, "label_ok": True, "tight": "good", "relevant": True}}
    good |= {"steps": {"correct": True, "executed": False}}
    parts = [{"number": number, **good[name]} for number in range(1, count + 1)]
    said = {"complete": True, "states_answer": False, "implies_answer": False, "verdict": "keep", "reason": "fine"}
    return {name: parts} | said | changes
