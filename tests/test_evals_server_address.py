"""Which server is meant: addresses, names of models, keys, and what is missing.

What is locked: whatever cannot be meant is one line before anything is asked, and no secret is repeated.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from evals.server import ServerModel, is_server, split_server
from tests.generate_case import quick  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick")


def listing(names):
    """A server that only lists models."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = json.dumps({"object": "list", "data": [{"id": name} for name in names]} if names else {}).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize(
    ("names", "path", "error"),
    [
        (["only/one"], "/v1", ""),
        (["a", "b"], "/v1", "expected one model or a name, as in .*/v1#NAME; has a, b"),
        ([], "/v1", "expected a list of models"),
        (["only/one"], "", "404: .*often ends in /v1"),
    ],
)
def test_without_a_name_the_only_model_is_taken(names, path, error):
    server, url = listing(names)
    try:
        if error:
            with pytest.raises(ValueError, match=error) as raised:
                ServerModel(url + path, "", 8, max_retries=0)
            assert "\n" not in str(raised.value)
        else:
            assert ServerModel(url + path, "", 8, max_retries=0).server.model == "only/one"
    finally:
        server.shutdown()
        server.server_close()


def test_an_address_names_a_server_and_a_model():
    assert is_server("http://host:8000/v1") and is_server("https://host/v1#m") and not is_server("Qwen/Qwen3-VL")
    assert split_server("http://host:8000/v1#org/m") == ("http://host:8000/v1", "org/m")
    assert split_server("http://host:8000/v1") == ("http://host:8000/v1", "")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:pw@host/v1", "no user, password or query"),
        ("https://host/v1?key=pw", "no user, password or query"),
        ("ftp://host/v1", "expected http"),
        ("http://", "expected http"),
        ("http://host:99999/v1", "expected http"),
        ("http://host/v1#pw", "expected http"),
    ],
)
def test_an_address_that_cannot_be_meant(url, said):
    with pytest.raises(ValueError, match=said) as error:
        ServerModel(url, "m", 8)
    assert "pw" not in str(error.value) or "#pw" in url


@pytest.mark.parametrize("change", [{"concurrency": 0}, {"timeout": 0}, {"max_retries": -1}, {"max_new_tokens": 0}])
def test_numbers_that_cannot_be_meant(change):
    with pytest.raises(ValueError, match="expected"):
        ServerModel("http://localhost/v1", "m", **({"max_new_tokens": 8} | change))


def test_a_key_that_cannot_be_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "clé")
    with pytest.raises(ValueError, match="printable ASCII in OPENAI_API_KEY"):
        ServerModel("http://localhost/v1", "m", 8)


def test_without_the_sdk_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r'pip install "vlm-dopd\[generate\]"'):
        ServerModel("http://localhost/v1", "m", 8)
