"""Bounded HTTP calls to loopback: Consul's ACL and health endpoints, and requests through the edge."""

from __future__ import annotations

from collections.abc import Mapping

import requests


def call(
    address: str,
    method: str,
    path: str,
    *,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 5.0,
) -> requests.Response:
    """One request to `host:port`; `body` goes as JSON. Neither a proxy nor a .netrc of the environment is asked.

    Raises OSError (requests' errors are such) when there is no answer or no valid one.
    """
    with requests.Session() as session:
        session.trust_env = False
        return session.request(
            method,
            f"http://{address}{path}",
            json=body,
            headers=headers,
            timeout=timeout_s,
            allow_redirects=False,
        )
