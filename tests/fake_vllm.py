"""vLLM's HTTP interface on loopback with a model of transformers behind it, so that ids and log-probabilities are real.

It samples with whole forward passes, expands placeholders and cuts images itself, and shares no code with the engine.
`script(path, body)` may answer a request in another way; the switches make it the servers that must be found out.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

DROP, HANG = "drop", "hang"


class FakeVLLM:
    def __init__(self, folder: Path, max_model_len: int = 4096) -> None:
        sees = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
        cls = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        self.model = cls.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder) if sees else AutoTokenizer.from_pretrained(folder)
        self.folder, self.max_model_len = folder, max_model_len
        self.vocabulary = len(getattr(self.processor, "tokenizer", self.processor))
        """Padded rows have next to no probability in a trained model, unlike in a random one."""
        self.version = "default"
        self.prefixes: dict[str, torch.Tensor] = {}
        """Prompt -> scores of its first token: a cache that outlives the weights unless it is reset."""
        self.calls: list[tuple[str, Any]] = []
        self.script: Callable[[str, Any], Any] = lambda path, body: None
        self.stale = self.raw = self.blurred = False
        """It ignores new weights; it says unprocessed log-probabilities; it sees images dimly."""
        self.lock, self.closing = threading.Lock(), threading.Event()

    def of(self, path: str) -> list[Any]:
        return [body for called, body in self.calls if called == path]

    @contextlib.contextmanager
    def serving(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                fake._answer(self, None)

            def do_POST(self):
                length = int(self.headers.get("content-length") or 0)
                fake._answer(self, json.loads(self.rfile.read(length)) if length else None)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            self.closing.set()
            server.shutdown()
            server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        if handler.command == "POST":
            self.calls.append((handler.path, body))
        scripted = self.script(handler.path, body) if handler.command == "POST" else None
        if scripted == HANG:
            self.closing.wait(10)
        if scripted in (HANG, DROP) or self.closing.is_set():
            handler.close_connection = True
            return
        with self.lock:
            code, reply = scripted or self._reply(handler.command, handler.path, body)
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        handler.send_response(code)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _reply(self, command: str, path: str, body: Any) -> tuple[int, Any]:
        known = ("/inference/v1/generate", "/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache",
                 "/reset_encoder_cache", "/update_weight_version")  # fmt: skip
        if command == "GET":
            models = {"data": [{"id": str(self.folder), "max_model_len": self.max_model_len}]}
            return (200, models) if path == "/v1/models" else (405 if path in known else 404, {"detail": "no"})
        if path not in known:
            return 404, {"detail": "Not Found"}
        if path == "/collective_rpc":
            return self._rpc(**body)
        if path == "/reset_prefix_cache":
            self.prefixes.clear()
            return 200, {"success": True}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return 200, {"success": True}
        return self._generate(body) if path == "/inference/v1/generate" else (200, b"")

    def _rpc(self, method: str, kwargs: dict[str, str]) -> tuple[int, Any]:
        assert method == "reload_weights"
        tensors = load_file(Path(kwargs["weights_path"]) / "model.safetensors")
        if not self.stale:
            missing, unexpected = self.model.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=False)
            assert not unexpected and set(missing) <= set(self.model.all_tied_weights_keys)
        return 200, {"results": [None]}

    @torch.no_grad()
    def _generate(self, body: Any) -> tuple[int, Any]:
        how = body["sampling_params"]
        if len(body["token_ids"]) + how["max_tokens"] > self.max_model_len:
            return 400, {"error": {"message": "The prompt is longer than the maximum model length."}}
        images = [self._image(part["url"]) for part in body.get("content_parts", [])]
        ids, vision = self._expanded(body["token_ids"], images)
        choices = [
            self._choice(number, ids, vision, how, repr((body["token_ids"], body.get("content_parts"))))
            for number in range(how["n"])
        ]
        return 200, {"choices": choices, "prompt_token_ids": ids}

    def _image(self, uri: str) -> Image.Image:
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        image.load()
        return image.resize((7, 5)).resize(image.size) if self.blurred else image

    def _expanded(self, ids: list[int], images: list[Image.Image]) -> tuple[list[int], dict[str, torch.Tensor]]:
        if not images:
            return ids, {}
        vision = self.processor.image_processor(images=images, return_tensors="pt")
        counts = iter((vision["image_grid_thw"].prod(-1) // self.processor.image_processor.merge_size**2).tolist())
        pad = self.processor.image_token_id
        found = [i for token in ids for i in ([pad] * next(counts) if token == pad else [token])]
        assert next(counts, None) is None, "an image without a placeholder"
        return found, dict(vision)

    def _choice(self, number: int, prompt: list[int], vision: dict[str, Any], how: Any, key: str) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(how["seed"] + number)
        ids: list[int] = []
        entries = []
        while len(ids) < how["max_tokens"] and not (ids and ids[-1] in how["stop_token_ids"]):
            if ids:
                raw_V = self._scores(prompt + ids, vision)
            else:
                if key not in self.prefixes:
                    self.prefixes[key] = self._scores(prompt, vision)
                raw_V = self.prefixes[key]
            logp_V = processed(raw_V, how)
            ids.append(int(torch.multinomial(logp_V.exp(), 1, generator=generator)))
            said_V = raw_V[: self.vocabulary].log_softmax(-1) if self.raw else logp_V
            entries.append({"token_id": ids[-1], "logprob": said_V[ids[-1]].item(), "rank": 1, "top_logprobs": []})
        return {
            "index": number,
            "token_ids": ids,
            "logprobs": {"content": entries},
            "finish_reason": "stop" if ids[-1] in how["stop_token_ids"] else "length",
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
        }

    def _scores(self, ids: list[int], vision: dict[str, Any]) -> torch.Tensor:
        row = torch.tensor([ids])
        types = {"mm_token_type_ids": (row == self.processor.image_token_id).int()} if vision else {}
        return self.model(input_ids=row, use_cache=False, **vision, **types).logits[0, -1].float()


def processed(raw_V: torch.Tensor, how: Any) -> torch.Tensor:
    """Log-probabilities after bias, temperature, top-k and top-p, as vLLM orders them."""
    scores_V = raw_V.clone()
    for token, bias in how["logit_bias"].items():
        scores_V[int(token)] += bias
    scores_V /= how["temperature"]
    if how["top_k"]:
        scores_V[scores_V < scores_V.topk(how["top_k"]).values[-1]] = float("-inf")
    if how["top_p"] < 1:
        ordered_V, place_V = scores_V.sort(descending=True)
        before_V = ordered_V.softmax(-1).cumsum(-1) - ordered_V.softmax(-1)
        scores_V[place_V[before_V > how["top_p"]]] = float("-inf")
    return scores_V.log_softmax(-1)
