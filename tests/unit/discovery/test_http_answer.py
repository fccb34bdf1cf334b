"""Answers from bytes: what is taken, what is refused, and that it does not matter how the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.http.answer import MAX_HEAD_BYTES, AnswerParser, BadAnswer, CutOff

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

WHOLE = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", b""),
    "chunks": (CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", b"hello"),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", b"hello"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified, with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
    "interim ones first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\nContent-Length: 9\r\n\r\n"
        + OK
        + b"Content-Length: 5\r\n\r\nhello",
        b"hello",
    ),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
}


def parse(data: bytes, *, head_only: bool = False, cuts: tuple[int, ...] = ()) -> AnswerParser:
    parser = AnswerParser(head_only)
    edges = [0, *sorted(cuts), len(data)]
    for begin, end in zip(edges, edges[1:], strict=False):
        if begin < end:
            parser.feed(data[begin:end])
    return parser


@pytest.mark.parametrize("name", WHOLE)
def test_whole_answers_end_where_they_say_and_leave_the_connection(name: str) -> None:
    data, body = WHOLE[name]
    answer = parse(data)
    assert (answer.headed, answer.done, answer.reusable, answer.take()) == (True, True, True, body)


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_cuts_between_the_bytes_change_nothing(name: str, data: st.DataObject) -> None:
    whole, body = WHOLE[name]
    cuts = data.draw(st.lists(st.integers(1, len(whole) - 1), max_size=8))
    answer = parse(whole, cuts=tuple(cuts))
    assert (answer.done, answer.reusable, answer.take()) == (True, True, body)
    assert answer.headers.items() == parse(whole).headers.items()


@given(st.binary(max_size=300), st.sampled_from([b"", OK, CHUNKED]), st.booleans())
def test_any_bytes_are_an_answer_or_refused(noise: bytes, begin: bytes, head_only: bool) -> None:
    parser = AnswerParser(head_only)
    try:
        for byte in begin + noise:
            if not parser.done:
                parser.feed(bytes([byte]))
        parser.end()
    except (BadAnswer, CutOff):
        return
    assert parser.headed


def test_trailers_and_interim_heads_are_not_among_the_headers() -> None:
    assert parse(WHOLE["trailers"][0]).headers.keys() == {"transfer-encoding"}
    assert parse(WHOLE["interim ones first"][0]).headers.items() == [("Content-Length", "5")]


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na",
        OK + b"Content-Length: 1, 1\r\n\r\na",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: +1\r\n\r\na",
        OK + b"Content-Length: 0x1\r\n\r\na",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\n",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\na\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\nabc",
        OK + b"Transfer-Encoding: identity\r\n\r\nabc",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\na\r\n",
        CHUNKED + b"-1\r\na\r\n",
        CHUNKED + b"0x1\r\na\r\n",
        CHUNKED + b"ffffffffffffffffff\r\na\r\n",
        CHUNKED + b"1\na\n0\n\n",
        CHUNKED + b"1\r\nabc\r\n",
        OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\nY: b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X : a\r\nContent-Length: 0\r\n\r\n",
        OK + b": a\r\nContent-Length: 0\r\n\r\n",
        OK + b"nothing\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: y\r\n" * 300 + b"\r\n",
        b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICE/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 Short\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 101 Go\r\n\r\n",
        b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 2",
        OK + b"Content-Length: 5\r\n",
        OK + b"Content-Length: 5\r\n\r\nhell",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_answer_that_ends_early_is_cut_off(data: bytes) -> None:
    answer = parse(data)
    with pytest.raises(CutOff):
        answer.end()


@pytest.mark.parametrize(
    "extra", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", b"x" * 100, b"\r\n\r\nHTTP/1.1 2"]
)
@pytest.mark.parametrize("name", WHOLE)
def test_bytes_behind_the_end_change_nothing_and_spend_the_connection(name: str, extra: bytes) -> None:
    whole, body = WHOLE[name]
    answer = parse(whole + extra)
    assert (answer.status, answer.done, answer.reusable) == (parse(whole).status, True, False)
    assert answer.take() == body
    assert answer.headers.items() == parse(whole).headers.items()


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (OK + b"Content-Length: 5\r\n\r\n", True),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", True),
        (OK + b"Content-Length: 5\r\nConnection: close\r\n\r\n", False),
        (OK + b"Content-Length: 5\r\n\r\nhello", False),
        (OK + b"Content-Length: 5\r\n\r\nh\r\n\r\n", False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n\r\n", False),
    ],
)
def test_answer_to_head_has_no_body_whatever_it_announces(head: bytes, reusable: bool) -> None:
    answer = parse(head, head_only=True)
    assert (answer.done, answer.reusable, answer.take()) == (True, reusable, b"")


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n", True),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_connection_is_kept_as_both_sides_agree(head: bytes, reusable: bool) -> None:
    assert parse(head + b"Content-Length: 0\r\n\r\n").reusable is reusable


def flood(parser: AnswerParser, drop: bytes, upto: int) -> None:
    """Feed the same over and over, as much as there is room for at a time."""
    fed = 0
    while fed < upto:
        data = drop * max(1, parser.room // len(drop))
        parser.feed(data)
        fed += len(data)


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (OK, b"X: y\r\n"),
        (OK, b"x" * 4096),
        (OK + b"X: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early\r\nX: y\r\n\r\n"),
        (b"", b"\r\n"),
        (b"", b"\xff\0" * 2048),
        (b"HTTP/1.1 200 ", b"x"),
    ],
)
def test_head_is_bounded(begin: bytes, drop: bytes) -> None:
    parser = parse(begin)
    with pytest.raises(BadAnswer):
        flood(parser, drop, MAX_HEAD_BYTES + 1)


@pytest.mark.parametrize(
    ("begin", "drop"), [(b"", b"0" * 4096), (b"1;", b"x" * 1000), (b"0\r\n", b"X: y\r\n" * 100)]
)
def test_what_is_not_body_is_bounded_between_its_pieces(begin: bytes, drop: bytes) -> None:
    parser = parse(CHUNKED + begin)
    with pytest.raises(BadAnswer):
        flood(parser, drop, 2 * MAX_HEAD_BYTES)
