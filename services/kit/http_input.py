"""Requests out of the bytes of one connection: llhttp (by httptools) behind limits, and what it leaves to its user.

llhttp refuses what is ambiguous by itself: two lengths, a length beside chunks, folded lines, bare line feeds, blanks in names. Left
to us are sizes, versions, trailers, and names with an underscore, which the environment could not tell from those with a hyphen.
"""

from __future__ import annotations

import io
import socket
from collections import deque
from typing import Any
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

READ_BYTES = 64 * 1024
# As gunicorn's limit_request_line, limit_request_fields and limit_request_field_size.
MAX_TARGET = 8190
MAX_FIELDS = 100
MAX_FIELD = 16380
# Nothing is looked at before a line is whole: so much may come before the head is.
MAX_HEAD = 64 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Header name as it came → its key in the environment. A stranger's inventions must not fill the memory.
_KEYS: dict[bytes, str] = {}
_MAX_KEYS = 1024


class BadRequest(Exception):
    """What came is no request. `status` and `reason` are to be answered, and the connection closed."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(f"{status} {reason}")


class BrokenOff(OSError):
    """The connection ended, or broke the rules, in the middle of a body."""


class Request:
    """One request whose head is there. `environ` has what WSGI takes from the head; `complete` once the body has all come."""

    __slots__ = (
        "body",
        "complete",
        "environ",
        "expects",
        "fields",
        "head",
        "keep",
        "method",
        "target",
        "version",
    )

    def __init__(self) -> None:
        self.environ: dict[str, Any] = {}
        self.target = b""
        self.method = ""
        self.version = "1.1"
        self.fields = 0
        self.head = True
        self.keep = False
        self.expects = False
        self.complete = False
        self.body: deque[bytes] = deque()


class Requests:
    """The requests of one connection. `feed` it what comes; those whose head is there queue in `ready`.

    Several can come in one piece: they are answered one after the other, and no more is read meanwhile.
    """

    def __init__(self) -> None:
        self.ready: deque[Request] = deque()
        self.error: BadRequest | None = None
        self._parser = HttpRequestParser(self)
        self._current: Request | None = None
        self._unparsed = 0

    @property
    def begun(self) -> bool:
        """Whether the head of a request has come in part."""
        return self._current is not None and self._current.head

    def feed(self, data: bytes) -> None:
        """Take what came. A mistake is noted in `error`, and holds for what comes after the requests that are ready."""
        if self.error is not None:
            return
        self._unparsed += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            # Not spoken here: the request is answered as it stands, and nothing after it is looked at.
            self.error = BadRequest(400, "Bad Request")
            if self._current is not None:
                self._current.keep = False
                self._current.complete = True
        except HttpParserInvalidMethodError:
            self.error = BadRequest(501, "Not Implemented")
        except HttpParserError as error:
            cause = error.__context__
            self.error = cause if isinstance(cause, BadRequest) else BadRequest(400, "Bad Request")
        if self.begun and self._unparsed > MAX_HEAD:
            self.error = BadRequest(431, "Request Header Fields Too Large")

    # -- called by the parser

    def on_message_begin(self) -> None:
        self._current = Request()

    def on_url(self, url: bytes) -> None:
        request = self._request()
        request.target += url
        if len(request.target) > MAX_TARGET:
            raise BadRequest(414, "URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request()
        if not request.head:
            return  # a trailer: it comes after what it could have changed
        request.fields += 1
        if request.fields > MAX_FIELDS or len(name) + len(value) > MAX_FIELD:
            raise BadRequest(431, "Request Header Fields Too Large")
        key = _KEYS.get(name) or _key(name)
        if not key:
            return
        text = value.decode("latin-1").strip(" \t")
        environ = request.environ
        environ[key] = f"{environ[key]},{text}" if key in environ else text

    def on_headers_complete(self) -> None:
        request, parser = self._request(), self._parser
        request.head = False
        self._unparsed = 0
        request.version = parser.get_http_version()
        if request.version not in ("1.1", "1.0"):
            raise BadRequest(505, "HTTP Version Not Supported")
        coding = request.environ.get("HTTP_TRANSFER_ENCODING")
        if coding is not None and (coding.lower() != "chunked" or request.version == "1.0"):
            raise BadRequest(501, "Not Implemented")
        request.keep = parser.should_keep_alive()
        request.method = parser.get_method().decode("ascii")
        request.expects = (
            request.version == "1.1" and "100-continue" in request.environ.get("HTTP_EXPECT", "").lower()
        )
        _take_target(request)
        self.ready.append(request)

    def on_body(self, data: bytes) -> None:
        self._request().body.append(data)

    def on_message_complete(self) -> None:
        self._request().complete = True
        self._unparsed = 0

    def _request(self) -> Request:
        if self._current is None:
            raise BadRequest(400, "Bad Request")
        return self._current


def _key(name: bytes) -> str:
    """A header's key in the environment; empty for one that is left out."""
    if b"_" in name:
        return ""
    text = name.decode("latin-1").upper().replace("-", "_")
    key = text if text in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{text}"
    if len(_KEYS) < _MAX_KEYS:
        _KEYS[name] = key
    return key


def _take_target(request: Request) -> None:
    """What the environment says of the target. Raises BadRequest."""
    if not request.target.isascii():
        raise BadRequest(400, "Bad Request")
    target = request.target.decode("ascii")
    path, _, query = target.partition("#")[0].partition("?")
    if path[:1] != "/" and path != "*":
        _, separator, rest = path.partition("://")
        if not separator:
            raise BadRequest(400, "Bad Request")
        path = "/" + rest.partition("/")[2]
    environ = request.environ
    environ["REQUEST_METHOD"] = request.method
    environ["RAW_URI"] = target
    environ["QUERY_STRING"] = query
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
    environ["SERVER_PROTOCOL"] = f"HTTP/{request.version}"


class Body(io.RawIOBase):
    """`wsgi.input` of a request: reads from the connection as it is read from, and never beyond the request.

    Raises BrokenOff when the rest does not come whole.
    """

    def __init__(self, request: Request, requests: Requests, connection: socket.socket) -> None:
        self._request = request
        self._requests = requests
        self._connection = connection

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, less only at the end; all that is left without one."""
        wanted = -1 if size is None or size < 0 else size
        pieces: list[bytes] = []
        have = 0
        while wanted < 0 or have < wanted:
            piece = self._next()
            if piece is None:
                break
            if wanted >= 0 and have + len(piece) > wanted:
                self._request.body.appendleft(piece[wanted - have :])
                piece = piece[: wanted - have]
            pieces.append(piece)
            have += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self) -> bytes | None:
        """The next piece, None at the end."""
        request = self._request
        while not request.body:
            if request.complete:
                return None
            if request.expects:
                request.expects = False
                self._connection.sendall(CONTINUE)
            data = self._connection.recv(READ_BYTES)
            if data:
                self._requests.feed(data)
            if not request.complete and not request.body and (not data or self._requests.error is not None):
                raise BrokenOff("the body is not whole")
        return request.body.popleft()
