"""Web Push: to which addresses a message may go, and how it gets there. Ref: RFC 8030, 8291 (encryption), 8292 (VAPID).

The address comes from whoever subscribes. So that none leads into our own network, it must be https at port 443 of a name all of
whose addresses are public; the connection goes to the address that was looked at, and no redirect is followed.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.notifications.delivery.courier import Later, Parcel, Refused, Undelivered
from services.notifications.delivery.wire import cut_after
from services.notifications.domain import Channel, Notification, Subscription

MAX_ENDPOINT = 1000
MAX_TITLE, MAX_BODY = 200, 200
# How long a push service keeps it for a browser that is not there.
TTL_S = 24 * 3600
# How long a token is good; a day at most.
TOKEN_S = 12 * 3600
# Leads to any IPv4 address, by a translator.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/32")
_GONE = (404, 410)


class Unsubscribed(Refused):
    """The browser wants no more."""


def check_endpoint(url: str, allow_private: bool = False) -> SplitResult:
    """The parts of an address that a push may go to, as far as the address itself tells. Raises ValueError."""
    if len(url) > MAX_ENDPOINT or not url.isascii() or any(c <= " " or c in '\\"<>\x7f' for c in url):
        raise ValueError(f"must be an address of at most {MAX_ENDPOINT} characters")
    parts = urlsplit(url)
    schemes = {"https", "http"} if allow_private else {"https"}
    if parts.scheme not in schemes or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("must be an https address")
    if not allow_private:
        if parts.port not in (None, 443):
            raise ValueError("must be at port 443")
        if _as_address(parts.hostname) is not None or "." not in parts.hostname.strip("."):
            raise ValueError("must have a public host name")
    return parts


def check_keys(p256dh: str, auth: str) -> None:
    """Whether a message can be encrypted for these. Raises ValueError."""
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), _decoded(p256dh))
        if len(_decoded(auth)) != 16:
            raise ValueError
    except (ValueError, binascii.Error):
        raise ValueError("these are no keys of a subscription") from None


def _decoded(text: str) -> bytes:
    return base64.b64decode(
        text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True
    )


def _as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(text: str) -> bool:
    """Whether an IP address is one of the Internet's, by itself and by what it may stand for."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner:
            return is_public(str(inner))
        if address in _TRANSLATED:
            return False
    return address.is_global and not address.is_multicast


def _address_of(host: str, port: int, allow_private: bool) -> str:
    """An address of the host. Raises Later, and Refused where any of them is not public."""
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise Later(f"no address of {host}: {error}") from None
    if not allow_private and not all(map(is_public, found)):
        raise Refused(f"{host} is not a public host")
    # IPv4 first: a machine without IPv6 has no way to the other.
    return min(found, key=lambda text: ":" in text)


class Vapid:
    """By whose key push services know this installation. `key` is the private one, 32 bytes in base64url. Raises ValueError."""

    def __init__(self, key: str, contact: str) -> None:
        number = int.from_bytes(_decoded(key.strip()), "big")
        private = ec.derive_private_key(number, ec.SECP256R1())
        point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public_key = base64.urlsafe_b64encode(point).rstrip(b"=").decode()
        self._key = key.strip()
        self._contact = contact

    def headers(self, endpoint: SplitResult) -> dict[str, str]:
        """What proves to the push service at `endpoint` who sends."""
        # Some megabytes for nothing where nobody has subscribed.
        from py_vapid import Vapid02

        claims = {
            "aud": f"{endpoint.scheme}://{endpoint.netloc}",
            "sub": f"mailto:{self._contact}",
            "exp": int(time.time()) + TOKEN_S,
        }
        signed: dict[str, str] = Vapid02.from_string(self._key).sign(claims)
        return signed


class Push:
    """See `Carrier`. A push that came twice replaces the one before: both have the notification's id as their `Topic` and `tag`."""

    channel: Channel = "push"

    def __init__(
        self,
        vapid: Vapid,
        unsubscribe: Callable[[Subscription], None],
        *,
        timeout_s: float,
        lease_s: float,
        allow_private: bool = False,
    ) -> None:
        self._vapid = vapid
        self._unsubscribe = unsubscribe
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self._allow_private = allow_private

    def send(self, parcel: Parcel, hand_over: Callable[[], None]) -> None:
        subscription = parcel.subscription
        assert subscription is not None
        try:
            status = self._post(subscription, parcel.notification)
        except Undelivered:
            raise
        except (OSError, http.client.HTTPException) as error:
            # Another subscription is another server's.
            raise Later(f"{type(error).__name__}: {error}") from None
        if status in _GONE:
            self._unsubscribe(subscription)
            raise Unsubscribed(f"the push service says {status}: no such subscription any more")
        if status == 429 or status >= 500:
            raise Later(f"the push service says {status}")
        if status >= 300:
            raise Refused(f"the push service says {status}")

    def _post(self, subscription: Subscription, notification: Notification) -> int:
        from pywebpush import WebPusher

        try:
            parts = check_endpoint(subscription.endpoint, self._allow_private)
        except ValueError as error:
            raise Refused(str(error)) from None
        keys = {"p256dh": subscription.p256dh, "auth": subscription.auth}
        pusher = WebPusher({"endpoint": subscription.endpoint, "keys": keys})
        body: bytes = pusher.encode(_payload(notification))["body"]
        headers = {
            "Host": parts.netloc,
            **self._vapid.headers(parts),
            "Content-Encoding": "aes128gcm",
            "TTL": str(TTL_S),
            "Topic": notification.id,
            "Urgency": "normal",
        }
        connection = self._connection(parts)
        try:
            with cut_after(self._lease_s / 2, lambda: connection.sock):
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("POST", path, body, headers)
                return connection.getresponse().status
        finally:
            connection.close()

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        """Open, to the address that was looked at: asked a second time, the name might lead elsewhere."""
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        address = _address_of(host, port, self._allow_private)
        connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        connection.auto_open = 0
        plain = socket.create_connection((address, port), timeout=self._timeout_s)
        try:
            context = ssl.create_default_context() if secure else None
            connection.sock = context.wrap_socket(plain, server_hostname=host) if context else plain
        except BaseException:
            plain.close()
            raise
        return connection


def _payload(notification: Notification) -> bytes:
    shown: dict[str, Any] = {
        "id": notification.id,
        "tag": notification.id,
        "kind": notification.kind,
        "title": notification.title[:MAX_TITLE],
        "body": notification.body[:MAX_BODY],
    }
    return json.dumps(shown, ensure_ascii=False).encode()
