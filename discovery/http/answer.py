"""What an instance answers, from bytes to a head and pieces of a body: bounded, strict, and without I/O.

httptools is llhttp, and already refuses conflicting lengths, bad chunks, folded and malformed fields. What it lets pass and
we do not: other protocols and versions, transfer codings other than chunked, an upgrade that was not asked for, floods.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from discovery.http.headers import Headers, RawPairs

# The most that is read at once, and so the longest piece of a body.
RECEIVE_BYTES = 64 * 1024
# All heads of one answer (interim ones too), and what may come between two pieces of a body (chunk extensions, trailers).
MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 256


class BadAnswer(Exception):
    """What came is no answer, or goes beyond the bounds. The connection must not be used again."""


class CutOff(ConnectionError):
    """The other side closed before its answer was whole."""


class AnswerParser:
    """One answer. `status` and `headers` stand once `headed`; `done` says that all has come.

    `reusable`, once done: the answer ended where it said, nothing came behind it, and both sides keep the connection.
    `length` is the Content-Length, None for none. `head_only`: the answer to a HEAD.
    """

    __slots__ = (
        "_chunked",
        "_fed_bytes",
        "_head_only",
        "_parser",
        "_raw",
        "_refusal",
        "done",
        "headed",
        "headers",
        "length",
        "pieces",
        "reusable",
        "status",
    )

    def __init__(self, head_only: bool) -> None:
        self.status = 0
        self.headed = False
        self.done = False
        self.reusable = False
        self.length: int | None = None
        self.pieces: list[bytes] = []
        self._head_only = head_only
        self._chunked = False
        self._fed_bytes = 0
        self._refusal = ""
        self._raw: RawPairs = []
        self.headers = Headers(self._raw)
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    @property
    def room(self) -> int:
        """How much to read next."""
        return RECEIVE_BYTES if self.headed else max(1, MAX_HEAD_BYTES - self._fed_bytes)

    @property
    def heard(self) -> bool:
        """Whether anything has come at all."""
        return self.headed or self._fed_bytes > 0

    def feed(self, data: bytes) -> None:
        """Take in what has arrived. Raises BadAnswer."""
        parser = self._parser
        alone = not self._fed_bytes and not self.headed
        self._fed_bytes += len(data)
        if parser is None or (alone and data[:1] != b"H"):
            raise BadAnswer(f"not HTTP: {data[:40]!r}")
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            raise BadAnswer("switches protocols unasked") from None
        except HttpParserError as error:
            if not self.done:
                raise BadAnswer(self._refusal or str(error)) from None
            self.reusable = False
        if self.done:
            self.release()
            if self._head_only:
                # The parser knows no HEAD: it may have taken what came behind the head for a body that it waits for.
                self.reusable &= alone and data.find(b"\r\n\r\n") == len(data) - 4
        elif self.pieces:
            self._fed_bytes = 0
        elif self._fed_bytes >= MAX_HEAD_BYTES:
            raise BadAnswer(f"{self._fed_bytes} bytes without {'a body' if self.headed else 'a whole head'}")

    def end(self) -> None:
        """The other side has closed. Raises CutOff where more had to come."""
        if self.done:
            return
        if not self.headed or self._chunked or self.length is not None:
            raise CutOff("closed in the middle of the answer" if self.heard else "closed without an answer")
        self.done = True

    def release(self) -> None:
        """Let go of the parser, which holds on to this object: nothing more will be fed."""
        self._parser = None

    def take(self) -> bytes:
        """The pieces that have come, as one."""
        pieces, self.pieces = self.pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- called by the parser

    def on_message_begin(self) -> None:
        if self.done:
            raise BadAnswer("goes on behind its end")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headed:  # else a trailer, which was not asked for
            self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None or self.headed:
            return
        status = parser.get_status_code()
        if 100 <= status < 200:
            self._raw.clear()
            return
        version = parser.get_http_version()
        self._check(status, version)
        self.status = status
        self.headed = True
        self._fed_bytes = 0
        if self._head_only:
            self.done = True
            self.reusable = parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if not self.done:
            self.pieces.append(body)

    def on_message_complete(self) -> None:
        if self.headed and not self.done and self._parser is not None:
            self.done = True
            self.reusable = self._parser.should_keep_alive()

    def _check(self, status: int, version: str) -> None:
        """What the head says about what follows. Raises BadAnswer."""
        if version not in ("1.1", "1.0") or not 200 <= status < 600:
            self._refuse(f"HTTP/{version}, status {status}")
        if len(self._raw) > MAX_FIELDS:
            self._refuse(f"{len(self._raw)} header fields")
        for name, value in self._raw:
            size = len(name)
            if size == 14 and name.lower() == b"content-length":
                self.length = int(value)
            elif size == 17 and name.lower() == b"transfer-encoding":
                if self._chunked or version == "1.0" or value.strip(b" \t").lower() != b"chunked":
                    self._refuse(f"transfer coding {value[:40]!r} in HTTP/{version}")
                self._chunked = True

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        raise BadAnswer(reason)
