"""Who is let in: bounds on pictures and bytes, refusal by estimated wait, quotas."""

from __future__ import annotations

import pytest

from serving.admission import Admission, Quota
from serving.problems import Problem


def house(**changes):
    return Admission(**{"max_items": 10, "max_bytes": 1000, "max_wait_s": 1.0, "lanes": 2, **changes})


def test_pictures_and_bytes_are_bounded_and_given_back():
    admission = house()
    with admission.ticket(10) as first:
        first.take_items(8)
        first.take_bytes(900)
        with admission.ticket(10) as second:
            with pytest.raises(Problem) as full:
                second.take_items(3)
            assert full.value.status == 503
            assert full.value.headers()["Retry-After"] == "1"
            with pytest.raises(Problem):
                second.take_bytes(101)
            second.take_items(2)
            second.take_bytes(100)
        assert (admission.items, admission.bytes) == (8, 900)
    assert (admission.items, admission.bytes) == (0, 0)


def test_what_would_never_fit_is_told_apart_from_what_does_not_fit_now():
    with house().ticket(10) as ticket, pytest.raises(Problem) as never:
        ticket.take_items(11)
    assert never.value.kind == "too-many-images"
    assert never.value.status == 413


def test_a_full_house_refuses_before_anything_is_read():
    admission = house()
    with admission.ticket(10) as ticket:
        ticket.take_items(9)
        admission.ticket(10)
        ticket.take_items(1)
        with pytest.raises(Problem) as full:
            admission.ticket(10)
        assert full.value.kind == "overloaded"
        assert full.value.headers()["Retry-After"] == "1"
    admission.ticket(10)


def test_refusal_is_by_estimated_wait():
    admission = house(max_items=1000)
    with admission.ticket(10) as ticket:
        ticket.take_items(21)
        assert admission.estimated_wait_s == 0  # nothing is known yet: nobody is refused on a guess
        for _ in range(50):
            admission.observe(2, 0.2)  # a tenth of a second each
        assert admission.estimated_wait_s == pytest.approx(20 * 0.1 / 2)
        admission.ticket(10)
        with pytest.raises(Problem):
            admission.ticket(0.5)  # it would come too late for this one
        ticket.take_items(20)
        with pytest.raises(Problem) as busy:
            admission.ticket(10)
        assert busy.value.status == 503
        assert int(busy.value.headers()["Retry-After"]) >= 1
    admission.ticket(0.5)


def test_a_lane_that_is_free_means_no_wait():
    admission = house()
    admission.observe(1, 5.0)
    with admission.ticket(10) as ticket:
        ticket.take_items(1)
        assert admission.estimated_wait_s == 0
        ticket.take_items(1)
        assert admission.estimated_wait_s == 2.5


def test_a_quota_is_per_client_and_refills():
    now = [0.0]
    quota = Quota(2.0, lambda: now[0])
    for _ in range(2):
        quota.take("a")
    with pytest.raises(Problem) as over:
        quota.take("a")
    assert over.value.status == 429
    assert over.value.headers()["Retry-After"] == "1"
    quota.take("b")
    now[0] = 0.5
    quota.take("a")
    with pytest.raises(Problem):
        quota.take("a")


def test_a_quota_forgets_the_longest_silent_client():
    quota = Quota(1.0, lambda: 0.0, clients=2)
    for client in "abc":
        quota.take(client)
    quota.take("a")  # forgotten, hence welcome again
    with pytest.raises(Problem):
        quota.take("c")


def test_no_quota_refuses_nobody():
    quota = Quota(0.0, lambda: 0.0)
    for _ in range(100):
        quota.take("a")
