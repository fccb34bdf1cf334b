"""Two gateways of one group that files of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway_rig import Rig, gateway_rig

# A breaker that has opened tries again after so long, and so many at once.
OPEN_S = 1.0
TRIALS = 3


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    env = {"GATEWAY_BREAKER_OPEN_S": str(OPEN_S), "GATEWAY_BREAKER_TRIALS": str(TRIALS)}
    with gateway_rig("business", "business", with_redis=True, env=env) as running:
        yield running
