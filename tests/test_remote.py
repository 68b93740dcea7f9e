"""Fetching by URL: what a stranger's data set may make us ask for.

What is locked: 1) without allow_hosts nothing is looked up; another host, scheme, port, a user name, an address written
as a number are refused before any look-up; 2) a name that resolves to anything but public addresses is refused, and the
connection goes to the address that was checked; 3) redirects, errors, other certificates, compressed or cut answers are
refused; 4) the byte cap and the time limit hold for the whole fetch, however slowly it drips; 5) one line an error.
"""

import http.server
import io
import socket
import ssl
import threading
import time

import pytest
import trustme
from PIL import Image

from privileged import DataError, ImageError, load_image, remote
from privileged.image_policy import ImagePolicy

PNG = io.BytesIO()
Image.new("RGB", (16, 12), "red").save(PNG, "PNG")
PNG = PNG.getvalue()
HOSTS = ("images.example.org",)
CA = trustme.CA()


def no_look_up(host, port):
    raise AssertionError(f"looked up {host}")


def asked(url, hosts=HOSTS, world=None, max_bytes=1000, timeout=5.0):
    world = world or remote._World(no_look_up, remote._is_public, ssl.create_default_context)
    return remote._fetch(url, "image 'x'", hosts, max_bytes, timeout, world)


def refused(*arguments, **options):
    """The one-line message with which a fetch ends."""
    with pytest.raises(ImageError) as caught:
        asked(*arguments, **options)
    assert str(caught.value).startswith("image 'x': expected")
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Handler(http.server.BaseHTTPRequestHandler):
    """One path a behaviour."""

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        getattr(self, self.path[1:].split("?")[0].replace("%20", "_"), self.missing)()

    def answer(self, status=200, body=PNG, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def missing(self):
        self.answer(404)

    def good(self):
        self.answer()

    a_b = good

    def redirect(self):
        self.answer(302, Location="/good")

    def zipped(self):
        self.answer(Content_Encoding="gzip")

    def cut(self):
        self.answer(Content_Length="5000")

    def large(self):
        self.answer(body=bytes(5000), Content_Length="5000")

    def endless(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(bytes(1000))

    def drip(self):
        self.send_response(200)
        self.end_headers()
        self.slowly(b"x")

    def drip_head(self):
        self.slowly(b"H")

    def slowly(self, byte):
        for _ in range(200):
            self.wfile.write(byte)
            self.wfile.flush()
            if self.server.stopped.wait(0.02):
                return

    def garbage(self):
        self.wfile.write(b"220 mail.example.org ESMTP\r\n")

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):  # the client hangs up on purpose
        pass


@pytest.fixture(scope="module")
def server():
    """A TLS server on loopback for `images.example.org`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("images.example.org").configure_cert(context)
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.stopped = [], threading.Event()
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()


def world_of(server, trusted=CA, addresses=("127.0.0.1",)):
    """The server's address for every name, allowed in spite of being local; `trusted` is who signs."""

    def context():
        context = ssl.create_default_context()
        trusted.configure_trust(context)
        return context

    return remote._World(lambda host, port: list(addresses), {"127.0.0.1"}.__contains__, context)


@pytest.fixture
def get(server):
    """Ask the server for a path."""
    hosts = (f"images.example.org:{server.server_port}",)

    def get(path, ask=asked, **options):
        options = {"world": world_of(server), "hosts": hosts} | options
        return ask(f"https://images.example.org:{server.server_port}/{path}", **options)

    return get


def test_the_bytes_arrive(get, server):
    """Those of the file; the request says nothing about us."""
    assert get("good?key=1#part") == PNG
    path, headers = server.requests[-1]
    assert path == "/good?key=1"
    assert headers["Host"] == f"images.example.org:{server.server_port}"
    assert set(headers) == {"Host", "Accept", "Accept-Encoding", "Connection"}
    assert get("a%20b") == PNG  # what is quoted stays as it is
    with pytest.raises(ImageError, match="got 404"):
        get("ü/日本.png")
    assert server.requests[-1][0] == "/%C3%BC/%E6%97%A5%E6%9C%AC.png"


def test_a_url_in_a_row_is_loaded_through_the_policy(server, monkeypatch, tmp_path):
    """From load_image to the server and back; only the three parts of the world are exchanged."""
    world = world_of(server)
    monkeypatch.setattr(remote, "_World", lambda *_: world)
    url = f"https://images.example.org:{server.server_port}/good"
    policy = ImagePolicy(allow_hosts=[f"images.example.org:{server.server_port}"])
    assert load_image(url, tmp_path, policy).size == (16, 12)
    with pytest.raises(ImageError, match=r"https://images.*/good.*at most 10 bytes"):
        load_image(url + "?key=secret", tmp_path, ImagePolicy(allow_hosts=policy.allow_hosts, max_bytes=10))


@pytest.mark.parametrize("name", ["http://images.example.org/a.png", "https://images.example.org/a.png", "ftp://x/a"])
def test_without_hosts_nothing_is_looked_up(name, tmp_path, monkeypatch):
    """The default."""
    monkeypatch.setattr(socket, "getaddrinfo", no_look_up)
    with pytest.raises(ImageError, match="allow_hosts"):
        load_image(name, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.org/a.png",
        "HTTP://images.example.org/a.png",
        "ftp://images.example.org/a.png",
        "file://images.example.org/etc/passwd",
        "file:///etc/passwd",
        "https:///a.png",
        "https://",
        "https://other.example.org/a.png",
        "https://example.org/a.png",
        "https://images.example.org.evil.com/a.png",
        "https://evil.com/images.example.org",
        "https://images.example.org./a.png",
        "https://xn--images-example.org/a.png",
        "https://images。example.org/a.png",
        "https://images.example.org:80/a.png",
        "https://images.example.org:8443/a.png",
        "https://images.example.org:0/a.png",
        "https://images.example.org:99999/a.png",
        "https://images.example.org:x/a.png",
        "https://images.example.org:443:443/a.png",
        "https://user@images.example.org/a.png",
        "https://user:secret@images.example.org/a.png",
        "https://images.example.org@evil.com/a.png",
        "https://evil.com\\@images.example.org/a.png",
        "https://images.example.org\\@evil.com/a.png",
        "https://images.example.org /a.png",
        "https://images.example.org\r\nHost: evil.com/a.png",
        "https://images.example.org/a.png HTTP/1.1\r\nX: y",
        "https://images.exa\tmple.org/a.png",
        " https://images.example.org/a.png",
        "https://images.example.org/a\0.png",
        "https://127.0.0.1/a.png",
        "https://2130706433/a.png",
        "https://0x7f000001/a.png",
        "https://0x7f.1/a.png",
        "https://0177.0.0.1/a.png",
        "https://127.1/a.png",
        "https://[::1]/a.png",
        "https://[::ffff:127.0.0.1]/a.png",
        "https://[fe80::1%25eth0]/a.png",
        "https://[::1/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/a.png",
        "https:images.example.org/a.png",
        "//images.example.org/a.png",
    ],
)
def test_what_is_not_on_the_list_is_refused_before_any_look_up(url):
    """Other schemes, hosts, ports, user names, numbers for hosts, and all that programs read differently."""
    message = refused(url)
    assert "secret" not in message


@pytest.mark.parametrize("host", ["HTTPS://images.example.org/", "https://IMAGES.example.org:443/x"])
def test_the_same_host_written_otherwise(host):
    """Names of hosts and schemes have no case; 443 is the port of https."""
    with pytest.raises(AssertionError, match=r"looked up images\.example\.org"):
        asked(host)


LOCAL = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "198.18.0.1", "192.0.2.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1",
    "fe80::1%eth0", "fec0::1", "fd00::1", "ff02::1", "ff0e::1", "2001:db8::1", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::", "2001:0:1:1:0:0:80ff:fffe",
]  # fmt: skip


@pytest.mark.parametrize("address", LOCAL)
def test_a_name_that_leads_home_is_refused(address):
    """Loopback, private, link-local (where clouds keep keys), multicast, reserved; plain or wrapped in IPv6."""
    for addresses in ([address], ["93.184.216.34", address]):
        world = remote._World(lambda *_, a=addresses: a, remote._is_public, ssl.create_default_context)
        assert address in refused("https://images.example.org/a.png", world=world)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_pass(address):
    """So that the test above does not hold for everything."""
    assert remote._is_public(address)


def test_the_connection_goes_to_the_address_that_was_checked(get, server, monkeypatch):
    """The name is resolved once; what it resolves to later does not matter."""
    looked_up = []
    real = socket.getaddrinfo

    def watched(host, *arguments, **options):
        looked_up.append(host)
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    assert get("good") == PNG
    assert set(looked_up) == {"127.0.0.1"}  # by the socket library, which takes a number for what it is


def test_the_next_address_is_tried(get, server):
    """Where the first does not answer."""
    world = world_of(server, addresses=["127.0.0.2", "127.0.0.1"])
    assert get("good", world=remote._World(world.resolve, lambda _: True, world.make_context)) == PNG
    assert "public addresses" in get("good", refused, world=world_of(server, addresses=[]))


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("redirect", "redirect"),
        ("nothing", "got 404"),
        ("zipped", "compressed"),
        ("cut", "expected 5,000 bytes"),
        ("large", "at most 1,000 bytes"),
        ("endless", "at most 1,000 bytes"),
        ("garbage", "220"),
    ],
)
def test_answers_that_are_not_the_file(path, word, get):
    """One line each."""
    assert word in get(path, refused)


@pytest.mark.parametrize("path", ["drip", "drip_head"])
def test_a_slow_drip_is_cut(path, get):
    """A byte every 20 ms for 4 s, in the body or before it: ended by the limit of the whole fetch."""
    begin = time.monotonic()
    assert "within 0.3 s" in get(path, refused, timeout=0.3)
    assert time.monotonic() - begin < 3


def test_a_look_up_that_hangs_is_cut():
    """Names are resolved by the system, which has its own patience."""
    forever = threading.Event()
    world = remote._World(lambda *_: forever.wait(30) and [], remote._is_public, ssl.create_default_context)
    assert "within 0.2 s" in refused("https://images.example.org/a", world=world, timeout=0.2)
    forever.set()


def test_a_server_that_never_answers_is_cut():
    """Neither to the connection's TLS nor to anything else."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        world = remote._World(lambda *_: ["127.0.0.1"], lambda _: True, ssl.create_default_context)
        hosts = (f"images.example.org:{port}",)
        message = refused(f"https://images.example.org:{port}/", hosts=hosts, world=world, timeout=0.3)
        assert "within 0.3 s" in message


def test_certificates_are_verified(get, server):
    """One of an unknown signer, and one for another name."""
    assert "certificate" in get("good", refused, world=world_of(server, trusted=trustme.CA()))
    port = server.server_port
    url, hosts = f"https://other.example.org:{port}/good", (f"other.example.org:{port}",)
    assert "certificate" in refused(url, hosts=hosts, world=world_of(server))


def test_a_name_that_does_not_resolve_is_one_line():
    """And so is one that no encoder takes."""

    def fail(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    world = remote._World(fail, remote._is_public, ssl.create_default_context)
    assert "not known" in refused("https://images.example.org/a", world=world)


BAD_HOSTS = [
    "127.0.0.1", "2130706433", "0x7f000001", "0x7f.0x1", "1.2.3", "[::1]", "::1", "*", "*.example.org",
    "https://images.example.org", "a..org", "a.org.", "Images.example.org", "a.org/x", "u@a.org", "a.org:x",
    "a.org:", "", "a b", "a.org\n", "bücher.example",
]  # fmt: skip


@pytest.mark.parametrize(
    "hosts",
    ["images.example.org", [5], *([name] for name in BAD_HOSTS)],
)
def test_the_list_holds_names(hosts):
    """No addresses in whatever spelling, no patterns, no URLs."""
    with pytest.raises(DataError, match="allow_hosts"):
        ImagePolicy(allow_hosts=hosts)


def test_names_that_look_like_numbers_but_are_not():
    """Not too strict either."""
    names = (
        "images.example.org",
        "3d.museum",
        "1e100.net",
        "cdn-1.a2.io:8443",
        "localhost",
        "s3.eu-west-1.amazonaws.com",
    )
    assert ImagePolicy(allow_hosts=list(names)).allow_hosts == names
    assert (ImagePolicy().timeout, ImagePolicy().max_bytes) == (20, 32 * 2**20)
