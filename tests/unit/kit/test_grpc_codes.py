"""gRPC's codes and HTTP's statuses: there and back."""

from __future__ import annotations

import grpc
import pytest

from services.kit.grpc.codes import code_of, status_of


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 429, 499, 500, 501, 503, 504])
def test_status_of_a_problem_comes_back_from_its_code(status: int) -> None:
    assert status_of(code_of(status)) == status


@pytest.mark.parametrize(("status", "near"), [(422, 400), (413, 400), (418, 400), (502, 500), (507, 500)])
def test_statuses_that_grpc_does_not_know_become_the_nearest(status: int, near: int) -> None:
    assert status_of(code_of(status)) == near


def test_every_code_has_a_status() -> None:
    assert all(200 <= status_of(code) < 600 for code in grpc.StatusCode)
    assert [code for code in grpc.StatusCode if status_of(code) < 400] == [grpc.StatusCode.OK]
