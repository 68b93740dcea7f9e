"""Fetching an image by URL: off unless its host is on the user's list. The only file here that opens a socket.

A data set decides what is asked for, so a URL is a stranger's wish: https only, no redirect, no credentials, no proxy,
and the address that a name resolves to must be public. The connection goes to the very address that was checked: a
name that resolves differently a moment later changes nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from .errors import ImageError

CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class _World:
    """What lies outside: the tests, whose server has a local address and a certificate of its own, bring theirs."""

    resolve: Callable[[str, int], list[str]]
    may_connect: Callable[[str], bool]
    make_context: Callable[[], ssl.SSLContext]


def fetch(url: str, where: str, *, allow_hosts: tuple[str, ...], max_bytes: int, timeout: float) -> bytes:
    """The bytes behind `url`, if `allow_hosts` names its host (with the port, where it is not 443).

    Raises ImageError, beginning with `where`, for another host, scheme or port, a user name, an address that is not
    public, an answer other than 200, more than `max_bytes`, or more than `timeout` seconds from look-up to last byte.
    """
    world = _World(_resolve, _is_public, ssl.create_default_context)
    return _fetch(url, where, allow_hosts, max_bytes, timeout, world)


def _fetch(url: str, where: str, allow_hosts: tuple[str, ...], max_bytes: int, timeout: float, world: _World) -> bytes:
    deadline = time.monotonic() + timeout
    host, port, target = _allowed(url, allow_hosts, where)
    try:
        addresses = _in_time(lambda: world.resolve(host, port), deadline)
        if not addresses or not all(map(world.may_connect, addresses)):
            raise ImageError(f"{where}: expected public addresses, got {', '.join(addresses) or 'none'}")
        with _connect(addresses, host, port, deadline, world.make_context()) as connection:
            return _read(connection, host, port, target, max_bytes, where)
    except ImageError:
        raise
    except TimeoutError:
        raise ImageError(f"{where}: expected an answer within {timeout:g} s, got none") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{where}: expected an answer, got: {reason}") from None


def _allowed(url: str, allow_hosts: tuple[str, ...], where: str) -> tuple[str, int, str]:
    """(host, port, path with query) of a URL that may be asked for."""
    # Before parsing: urlsplit drops line breaks, and programs differ in what they take a backslash for.
    if any(character <= " " or character in "\\\x7f" for character in url):
        raise ImageError(f"{where}: expected a URL, got one with a blank, backslash or control character")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ImageError(f"{where}: expected a URL, got {error}") from None
    if parts.scheme != "https":
        raise ImageError(f"{where}: expected an https URL, got {parts.scheme}")
    if "@" in parts.netloc:
        raise ImageError(f"{where}: expected a URL without a user name, got one with")
    if (host if port in (None, 443) else f"{host}:{port}") not in allow_hosts:
        raise ImageError(f"{where}: expected a host of allow_hosts ({', '.join(allow_hosts) or 'none'}), got another")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return host, port or 443, f"{path}?{query}" if query else path


def _resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _is_public(address: str) -> bool:
    """Not of this machine, this network or a special purpose, also where an IPv6 address only wraps an IPv4 one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
        if ip.is_site_local or int(ip) >> 32 == 0:  # the latter: IPv4-compatible, long withdrawn
            return False
    return ip.is_global and not ip.is_multicast


def _in_time(task: Callable[[], list[str]], deadline: float) -> list[str]:
    """`task()`, in a thread of its own: the system's look-up of names cannot be interrupted."""
    done: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put(task())
        except Exception as error:
            done.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = done.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        raise result
    return result


class _Timed(ssl.SSLSocket):
    """A socket whose reads end at `deadline`, however slowly the bytes drip."""

    deadline = float("inf")

    def recv_into(self, *arguments, **options) -> int:  # type: ignore[no-untyped-def]
        """As in the standard library. http.client reads through this method alone."""
        self.settimeout(_left(self.deadline))
        return super().recv_into(*arguments, **options)


def _connect(addresses: list[str], host: str, port: int, deadline: float, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A verified connection to the first of `addresses` that answers; `host` is what its certificate must say."""
    context.sslsocket_class = _Timed
    failure: OSError = OSError("no address")
    for address in addresses:
        try:  # a number: nothing is looked up a second time
            plain = socket.create_connection((address, port), timeout=_left(deadline))
        except OSError as error:
            failure = error
            continue
        try:
            plain.settimeout(_left(deadline))
            connection = context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        assert isinstance(connection, _Timed)
        connection.deadline = deadline
        return connection
    raise failure


def _read(connection: ssl.SSLSocket, host: str, port: int, target: str, max_bytes: int, where: str) -> bytes:
    client = http.client.HTTPConnection(host, port)
    client.sock = connection
    authority = host if port == 443 else f"{host}:{port}"
    headers = {"Host": authority, "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
    client.request("GET", target, headers=headers)
    response = client.getresponse()
    if 300 <= response.status < 400:
        raise ImageError(f"{where}: expected the image itself, got a redirect; put its final URL into the data")
    if response.status != 200:
        raise ImageError(f"{where}: expected status 200, got {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ImageError(f"{where}: expected the bytes as they are, got a compressed answer")
    body = bytearray()
    while chunk := response.read(CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise ImageError(f"{where}: expected at most {max_bytes:,} bytes, got more")
    if response.length:
        raise ImageError(f"{where}: expected {len(body) + response.length:,} bytes, got {len(body):,}")
    return bytes(body)


def _left(deadline: float) -> float:
    """Seconds until `deadline`. Raises TimeoutError when there are none."""
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left
