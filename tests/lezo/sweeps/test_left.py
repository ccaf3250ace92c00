"""How long a sweep will still take."""

from lezo.sweeps.left import TimeLeft


def test_nothing_is_known_before_a_job_tells() -> None:
    left = TimeLeft(2)
    assert left.seconds([("a", 5.0, None)], ["b"]) is None
    assert left.seconds([("a", 5.0, 15.0), ("b", 5.0, None)], []) == 15.0  # as the first projects: 20 in all
    assert left.seconds([("a", 5.0, 15.0)], ["b", "b"]) == 35.0  # the free slot takes 20, the first 15 and 20


def test_jobs_are_expected_to_take_what_others_of_their_setting_took() -> None:
    left = TimeLeft(1)
    for seconds in (10.0, 20.0):
        left.took("slow", seconds)
    left.took("fast", 3.0)
    assert left.seconds([], ["slow", "fast"]) == 18.0
    assert left.seconds([("slow", 5.0, None)], []) == 10.0
    assert left.seconds([("fast", 50.0, None)], []) == 0.0  # later than expected
    assert left.seconds([], ["new"]) == 11.0


def test_slots_share_what_waits() -> None:
    left = TimeLeft(3)
    left.took("a", 10.0)
    assert left.seconds([("a", 0.0, 1.0), ("a", 0.0, 2.0), ("a", 0.0, 9.0)], ["a", "a"]) == 12.0
    assert left.seconds([], ["a"] * 7) == 30.0
