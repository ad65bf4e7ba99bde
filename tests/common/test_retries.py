"""Pauses between tries, how long a store is waited for, and what is said meanwhile."""

import time
from email.utils import formatdate

import pytest

from common.errors import StoreError
from common.stores import retries
from common.stores.retries import (
    FIRST_ANSWER_S,
    LONGEST_PAUSE_S,
    SAID_EVERY_S,
    SLOWEST_BYTES_PER_S,
    Contact,
    Pace,
    Retry,
)
from common.stores.retry_after import seconds_of


class Clock:
    """A clock that waiting moves; as the `stopped` event it never comes, and notes for how long it was waited for."""

    def __init__(self, monkeypatch, each_try_s=0.0):
        self.now, self.seconds, self.each_try_s = 1000.0, [], each_try_s
        monkeypatch.setattr(retries.time, "monotonic", lambda: self.now)

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        self.now += timeout
        return False

    def refused(self):
        self.now += self.each_try_s
        raise ConnectionError("no")


def contact(answered=True):
    out, said = Contact(), []
    out.answered, out.say = answered, said.append
    return out, said


def given_up(clock, retry, place=None):
    with pytest.raises(StoreError, match=r"there: given up after \d+ tries: no") as caught:
        retry.run(clock.refused, str, "there", clock, place)
    return int(str(caught.value).split()[4])


def test_pauses_grow_up_to_the_longest_and_differ_between_ranks(monkeypatch):
    clocks = [Clock(monkeypatch), Clock(monkeypatch)]
    for clock in clocks:
        monkeypatch.setattr(retries.time, "monotonic", lambda clock=clock: clock.now)
        assert given_up(clock, Retry(attempts=9, minutes=0), contact()[0]) == 9
        mean = [min(0.5 * 2**attempt, LONGEST_PAUSE_S) for attempt in range(8)]
        assert mean[-1] == LONGEST_PAUSE_S
        assert all(0.5 <= pause / usual <= 1.5 for pause, usual in zip(clock.seconds, mean, strict=True))
    assert all(a != b for a, b in zip(*(clock.seconds for clock in clocks), strict=True))


@pytest.mark.parametrize("each_try_s", [0.0, 1.0, 8.0])
def test_a_store_that_never_answered_is_given_up_within_half_a_minute(monkeypatch, each_try_s):
    clock = Clock(monkeypatch, each_try_s)
    given_up(clock, Retry(attempts=1000))
    assert clock.now - 1000.0 <= FIRST_ANSWER_S


def test_a_store_that_has_answered_is_waited_for_in_minutes_and_the_user_is_told(monkeypatch):
    clock, (place, said) = Clock(monkeypatch), contact()
    retry = Retry(attempts=3, minutes=10)
    assert given_up(clock, retry, place) > 20
    assert 600 <= clock.now - 1000.0 < 601
    rarest = SAID_EVERY_S + 1.5 * LONGEST_PAUSE_S  # a line is due, and then comes after the pause at hand
    assert 600 // rarest <= len(said) <= 11 and all("there: no; waiting for it, for" in line for line in said)
    answers = iter([ConnectionError] * 7 + [None])  # pauses come to over SILENT_S and under SAID_EVERY_S in any case

    def back():
        if (error := next(answers)) is not None:
            raise error("no")
        return "data"

    said.clear()
    place.answers("there")
    assert retry.run(back, str, "there", clock, place) == "data"
    assert len(said) == 3 and said[-1].startswith("note: there: answers again, after ")
    assert retry.run(lambda: "more", str, "there", clock, place) == "more" and len(said) == 3


def test_what_a_server_asks_for_is_the_pause_as_far_as_there_is_time(monkeypatch):
    clock, (place, _) = Clock(monkeypatch), contact()
    place.not_before = clock.now + 45
    given_up(clock, Retry(minutes=1), place)
    assert clock.seconds[0] == 45 and clock.now - 1000.0 <= 61
    clock.seconds.clear()
    place.not_before = clock.now + 24 * 3600
    given_up(clock, Retry(minutes=1), place)
    assert clock.seconds[0] == 60


def test_tries_end_when_told_and_what_no_try_helps_is_raised_at_once():
    import threading

    calls, stopped = [], threading.Event()

    def fail():
        calls.append(1)
        raise ConnectionError("no")

    def for_good(error):
        raise StoreError("there: forbidden")

    with pytest.raises(StoreError, match="given up after 3 tries: no"):
        Retry(attempts=3, pause_s=0.001).run(fail, str, "there")
    assert len(calls) == 3
    with pytest.raises(StoreError, match="forbidden"):
        Retry().run(fail, for_good, "there")
    stopped.set()
    with pytest.raises(StoreError, match="closed"):
        Retry(pause_s=60.0).run(fail, str, "there", stopped, contact()[0])
    for wrong in ({"attempts": 0}, {"pause_s": -1}, {"stall_s": 0}, {"minutes": -1}):
        with pytest.raises(ValueError):
            Retry(**wrong)


def test_a_byte_per_second_is_no_progress_and_a_slow_reader_is_no_slow_store(monkeypatch):
    clock = Clock(monkeypatch)

    def piece(size, seconds):
        clock.now += seconds
        return bytes(size)

    pace = Pace(30.0)
    with pytest.raises(TimeoutError, match="30 bytes arrived in 30 s"):
        for _ in range(60):
            pace.timed(lambda: piece(1, 1.0))
    pace = Pace(30.0)
    for _ in range(60):
        pace.timed(lambda: piece(2 * SLOWEST_BYTES_PER_S, 1.0))
    for _ in range(5):
        pace.timed(lambda: piece(1, 0.1))
        clock.now += 600.0


def test_retry_after_is_a_number_or_a_date():
    assert seconds_of("15") == 15.0 and seconds_of("-3") == 0.0
    assert 55 < seconds_of(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert [seconds_of(value) for value in (None, "", "soon", formatdate(0, usegmt=True))] == [0.0] * 4
