"""One HTTP/1.1 connection to an instance: sends a request, listens meanwhile, and reads the answer as it comes.

Plain blocking sockets: in threads they wait in the kernel, under gevent's patches in its loop. Deadlines (`until`) are on the
clock's monotonic time and hold for all of what they are given to, not for each byte.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from collections.abc import Iterable

from discovery.clock import Clock
from discovery.http.answer import AnswerParser
from discovery.http.body import PIECE_BYTES, BodyFailed, OnceBody

_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")
_END_OF_CHUNKS = b"0\r\n\r\n"


def connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected socket without Nagle's delay, non-blocking. Raises OSError; ValueError, OverflowError for an invalid address."""
    if not _HOST.fullmatch(host):  # it goes into the Host header as well
        raise ValueError(f"no address: {host[:80]!r}")
    if ":" in host and "%" not in host:
        family = socket.AF_INET6
    elif host.replace(".", "").isdecimal():
        family = socket.AF_INET
    else:  # a name, or an address with a zone
        return _prepare(socket.create_connection((host, port), timeout_s))
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect((host, port))
        return _prepare(sock)
    except BaseException:
        sock.close()
        raise


def _prepare(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


class Connection:
    """One exchange at a time, one owner at a time. Raises OSError (TimeoutError among them) and BadAnswer; is to be closed then.

    `wrote`: something of the request went out; `kept`: the connection has served another exchange before.
    """

    __slots__ = (
        "_clock",
        "_cut",
        "_failed",
        "_sender",
        "_sock",
        "_until",
        "answer",
        "idle_since",
        "kept",
        "wrote",
    )

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock = sock
        self._clock = clock
        self._cut = False
        self._until = 0.0
        # None: this object. A circle of references would hold the socket past its end.
        self._sender: Connection | None = None
        self._failed: BodyFailed | None = None
        self.kept = False
        self.wrote = False
        self.idle_since = 0.0
        self.answer: AnswerParser = AnswerParser(False)

    @property
    def reusable(self) -> bool:
        """Whether the exchange is over and another may follow."""
        return self.answer.reusable and not self._cut

    def quiet(self) -> bool:
        """Whether an idle connection still stands: neither bytes nor the end have come. To be asked before it is used again."""
        try:
            self._sock.setblocking(False)
            self._sock.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def ask(
        self,
        head: bytes,
        body: bytes | OnceBody | None,
        length: int | None,
        *,
        head_only: bool,
        until: float,
        both_ways: bool = False,
    ) -> None:
        """Send a request and wait for the head of its `answer`.

        An iterator is sent as it comes: by chunks, or as `length` bytes. Waiting for it is not counted: each of its pieces may
        take as long as there was at first, and the answer as long after the last. `both_ways`: it may still be coming when the
        answer has begun; the connection serves no other exchange after that. Raises BodyFailed too, also while the answer is read.
        """
        self.wrote = False
        self.answer = AnswerParser(head_only)
        self._until = until
        # Receiving gives it a timeout: with that, sending would wait for an answer before its time.
        self._sock.setblocking(False)
        try:
            if body is None:
                whole = self._send(head)
            elif not isinstance(body, bytes):
                timeout_s = until - self._clock.monotonic()
                send = self._send_beside if both_ways else self._send_pieces
                whole = self._send(head) and send(body, length, timeout_s)
            elif len(body) <= PIECE_BYTES:
                whole = self._send(head + body)
            else:
                whole = self._send(head) and self._send(body)
        except (BrokenPipeError, ConnectionResetError):
            if not self.wrote:
                raise
            # It may have answered before it closed, say that the body is too long: reading will show.
            whole = False
        self._cut = not whole
        while not self.answer.headed:
            self._receive_head()

    def piece(self, until: float) -> bytes:
        """The next of the body, as it has arrived: at most 64 KiB; empty at its end."""
        answer = self.answer
        while not answer.pieces:
            if answer.done:
                return b""
            self.receive(until)
        return answer.take()

    def close(self) -> None:
        """From any thread: one that waits for the answer is woken."""
        self.answer.release()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._sock.close()

    # -- receiving

    def receive(self, until: float) -> None:
        """Take in what comes next."""
        left_s = until - self._clock.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        try:
            self._sock.settimeout(left_s)
            data = self._sock.recv(self.answer.room)
        except OSError:
            if self._failed is None:
                raise
        if self._failed is not None:
            raise self._failed
        self._take(data)

    def _receive_head(self) -> None:
        """More of the head. Each piece of a body that is still being sent gives it more time."""
        sender = self._sender or self
        until = sender._until
        try:
            self.receive(until)
        except TimeoutError:
            if sender._until <= until:
                raise

    def _take(self, data: bytes) -> None:
        if data:
            self.answer.feed(data)
        else:
            self.answer.end()

    def _overhear(self) -> bool:
        """While sending: take in what the instance says already; whether to go on.

        After an error or a redirect the instance need not get the rest of the body. Other answers may be about what was sent
        so far.
        """
        try:
            self._take(self._sock.recv(self.answer.room))
        except BlockingIOError:
            return True
        return not self.answer.headed or self.answer.status < 300

    # -- sending: the socket is non-blocking meanwhile

    def _send(self, data: bytes) -> bool:
        """Hand all of it to the kernel; False when the instance wants no more."""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent:
            self.wrote = True
        return sent == len(data) or self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> bool:
        while rest:
            if not self._wait_for_room():
                return False
            with contextlib.suppress(BlockingIOError):
                rest = rest[self._sock.send(rest) :]
                self.wrote = True
        return True

    def _wait_for_room(self) -> bool:
        left_s = self._until - self._clock.monotonic()
        poller = select.poll()  # looked up here: gevent puts its own in this place
        listening = 0 if self.answer.headed else select.POLLIN
        poller.register(self._sock.fileno(), select.POLLOUT | listening)
        events = poller.poll(max(0, int(left_s * 1000)))
        if not events:
            raise TimeoutError("timed out")
        return self._overhear() if events[0][1] & listening else True

    def _send_pieces(self, pieces: Iterable[bytes], length: int | None, timeout_s: float) -> bool:
        left = length
        for piece in pieces:
            if left is not None:
                left -= len(piece)
                if left < 0:
                    raise BodyFailed(f"the request's body is longer than its Content-Length of {length}")
            self._until = self._clock.monotonic() + timeout_s
            if not self.answer.headed and not self._overhear():
                return False
            if not self._send_piece(piece, chunked=length is None):
                return False
        if left:
            raise BodyFailed(f"the request's body is {left} bytes shorter than its Content-Length")
        self._until = self._clock.monotonic() + timeout_s
        return length is not None or self._send(_END_OF_CHUNKS)

    def _send_beside(self, body: OnceBody, length: int | None, timeout_s: float) -> bool:
        """Send a body in a thread of its own. False: it is not known yet whether it goes out whole."""
        body.begun = True
        # Another object for the same socket: its timeouts are its own, and with a head it does not listen.
        sender = self._sender = Connection(self._sock.dup(), self._clock)
        sender.answer.headed = True
        sender._until = self._until

        def send() -> None:
            try:
                sender._sock.setblocking(False)
                sender._send_pieces(body, length, timeout_s)
            except BodyFailed as error:
                self._failed = error
                self.close()
            except OSError:
                pass  # the instance takes no more of it: its answer says why
            finally:
                sender._sock.close()

        threading.Thread(target=send, name="request body", daemon=True).start()
        return False

    def _send_piece(self, piece: bytes, *, chunked: bool) -> bool:
        if not chunked:
            return not piece or self._send(piece)
        for at in range(0, len(piece), PIECE_BYTES):
            part = piece[at : at + PIECE_BYTES]
            if not self._send(b"%x\r\n%b\r\n" % (len(part), part)):
                return False
        return True
