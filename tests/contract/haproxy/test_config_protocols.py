"""HTTP/2 on both sides: from clients over TLS, and in clear text to an instance with `edge-protocol: h2c`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from haproxy.controller.config.model import EdgeState
from tests.contract.haproxy.test_config_streams import asked, chunk, say_back, talker, until
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually
from tests.support.recorder import Upstream
from tests.support.servers import Process, accepts, free_port

NGINX = """
daemon off; pid {folder}/pid; error_log stderr; events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    server {{
        listen 127.0.0.1:{port} http2;
        proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off;
        location / {{ return 200 $server_protocol; }}
        location /api/grpc/talk {{ proxy_pass http://127.0.0.1:{behind}; }}
    }}
}}
"""


def curl(running: Edge, path: str, *options: str) -> str:
    """Body, and the protocol that curl spoke."""
    base = f"https://localhost:{running.settings.edge_https_port}"
    certificate = str(running.settings.certificate)
    command = ["curl", "-sS", "--noproxy", "*", "--cacert", certificate, "-w", " %{http_version}"]
    result = subprocess.run(
        [*command, *options, base + path], capture_output=True, text=True, timeout=10, check=True
    )
    return result.stdout


@pytest.fixture(scope="module")
def grpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge in front of an nginx that speaks HTTP/2 in clear text; what it is asked under `/talk` is said back, piece by piece."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    config = folder / "nginx.conf"
    nginx = Process(["nginx", "-e", "stderr", "-c", str(config), "-p", str(folder)], folder / "log")
    with talker(say_back) as instance:
        config.write_text(NGINX.format(folder=folder, port=port, behind=instance.port))
        nginx.start()
        try:
            eventually(lambda: accepts(port), 5)
            with edge(EdgeState((backend("grpc", port, protocol="h2c", check_identity=False),))) as running:
                yield running
        finally:
            nginx.kill()


def test_h2c_instance_is_checked_and_asked_in_http2(grpc: Edge) -> None:
    eventually(lambda: grpc.stat("svc_grpc", "grpc-1")["check_status"] == "L7OK", 3)
    assert grpc.get("/api/grpc/x").body == b"HTTP/2.0"
    assert curl(grpc, "/api/grpc/x", "--http2") == "HTTP/2.0 2"


def test_two_way_stream_of_http2_goes_on_piece_by_piece(grpc: Edge) -> None:
    """As a gRPC client stream does: the instance hears the first piece, and answers, while the second is still to come."""
    with asked(grpc, "POST /api/grpc/talk", "Transfer-Encoding: chunked", timeout_s=10) as client:
        for piece in (b"one", b"two"):
            client.sendall(chunk(piece))
            assert piece in until(client, piece)
        client.sendall(b"0\r\n\r\n")
        assert until(client, b"0\r\n\r\n")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_old_tls_is_refused(grpc: Edge, version: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        curl(grpc, "/api/grpc/x", f"--tlsv{version}", "--tls-max", version)


def test_http2_request_meets_the_same_rules() -> None:
    with Upstream("open") as upstream:
        routes = (
            backend("locked", upstream.port, auth="jwt", check_identity=False),
            backend("open", upstream.port),
        )
        with edge(EdgeState(routes)) as running:
            code = ("-o", "/dev/null", "-w", " %{http_code}")
            assert curl(running, "/api/locked/x", *code).strip() == "401"
            assert curl(running, "/api/open/x;y", *code).strip() == "400"
            assert curl(running, "/api/%6cocked/x", *code).strip() == "401"
            assert curl(running, "/api/open/x", "-H", "SCRIPT_NAME: /x", *code).strip() == "403"
            two = ("-H", "Authorization: Bearer a", "-H", "Authorization: Bearer b")
            assert curl(running, "/api/open/x", *two, *code).strip() == "400"
            upstream.requests.clear()
            assert curl(running, "/api/open/x", "-H", "X-Auth-Subject: root", *code).strip() == "200"
            assert upstream.requests[0].all("x-auth-subject") == []
            assert upstream.requests[0].header("x-forwarded-proto") == "https"
            heads = curl(running, "/api/open/x", "-D", "-").lower()
            assert "strict-transport-security: max-age=31536000" in heads
