"""The servers that tests start are the real ones, and are gone afterwards."""

from pathlib import Path

from tests.support.servers import accepts, consul, free_port, haproxy, redis


def test_consul_has_a_leader_and_is_gone_afterwards(tmp_path: Path) -> None:
    with consul(tmp_path) as server:
        assert server.call("GET", "/v1/status/leader")
        port = server.http_port
    assert not accepts(port)


def test_consul_with_acl_refuses_strangers(tmp_path: Path) -> None:
    with consul(tmp_path, acl=True) as server:
        assert server.call("GET", "/v1/acl/tokens")
        assert server.call("GET", "/v1/catalog/nodes", token="anonymous") == []


def test_redis_and_haproxy_serve(tmp_path: Path) -> None:
    port = free_port()
    with (
        redis() as cache,
        haproxy(
            f"defaults\n  mode http\n  timeout client 1s\nfrontend f\n  bind 127.0.0.1:{port}\n",
            wait_port=port,
        ),
    ):
        assert accepts(cache.port)
        assert accepts(port)
    assert not accepts(cache.port)
    assert not accepts(port)
