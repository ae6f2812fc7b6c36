"""Explanations of small runs whose story is known, and the Markdown that is made of them."""

from __future__ import annotations

import re
from base64 import b64decode
from random import Random
from xml.etree import ElementTree

import pytest

from deepflow.decide.events import (
    Candidate,
    CodecChoice,
    Event,
    Failed,
    Finished,
    Held,
    Moved,
    Placed,
    RunNamed,
    Started,
    Submitted,
    TasksNamed,
    Transferred,
    WorkerJoined,
)
from deepflow.decide.trail import Trail
from deepflow.errors import JournalError
from deepflow.observe.artifact import Forecast, Replay, flow_report_markdown
from deepflow.observe.compact_svg import compact_svg
from deepflow.observe.explain import (
    Reason,
    find_runs,
    find_tasks,
    in_seconds,
    longest_wait_by_task,
    longest_waits,
    move_summaries,
    reasons_it_waited,
    runs_in_words,
    story_of,
    task_summaries,
)

CHOSEN = Candidate("fast-0", 3.0, 1.0, 2.0, 6.0)


def events() -> list[Event]:
    """b-1 is ready at 10: held for 4 s, then 1 s of transfer and 3 s behind a-2 on fast-0."""
    return [
        WorkerJoined(0.0, "fast-0", "fast", 1),
        WorkerJoined(0.0, "slow-0", "slow", 1),
        Submitted(0.0, "a-1", "a", "train", "run-one"),
        Submitted(0.0, "a-2", "a", "train", "run-one"),
        Submitted(0.0, "b-1", "b", "train", "run-one", ("a-1",)),
        Placed(0.0, "a-1", "slow-0", "eft"),
        Finished(10.0, "a-1", "slow-0", 0.0, 10.0, 500),
        Placed(0.0, "a-2", "fast-0", "eft"),
        Held(11.0, "b-1", "fast-0 is soon free"),
        Placed(14.0, "b-1", "fast-0", "eft", (CHOSEN, Candidate("slow-0", 0, 0, 9, 9.0)), "data"),
        Transferred(15.0, "a-1", "slow-0", "fast-0", 500, 1.0),
        Finished(18.0, "a-2", "fast-0", 0.0, 18.0, 10),
        Finished(20.0, "b-1", "fast-0", 18.0, 20.0, 10),
    ]


def test_the_parts_of_a_wait_add_up_and_say_why() -> None:
    trail = Trail.of(events())
    reasons = reasons_it_waited(trail, trail.tasks["b-1"])
    assert sorted(reasons, key=lambda r: r.text) == [
        Reason(3.0, "held back: fast-0 is soon free", "held"),
        Reason(3.0, "in the queue of fast-0, behind 1 task", "queue"),
        Reason(1.0, "its inputs were on the way", "inputs"),
        Reason(1.0, "not yet given to a worker", "unplaced"),
    ]
    assert sum(reason.seconds for reason in reasons) == trail.tasks["b-1"].wait_s == 8.0


def test_a_task_that_did_not_wait_has_no_reason() -> None:
    trail = Trail.of(events())
    assert reasons_it_waited(trail, trail.tasks["a-1"]) == ()


def test_a_task_that_never_became_ready_says_what_it_lacked() -> None:
    trail = Trail.of(
        [Submitted(0.0, "a-1", "a", "f", "r"), Submitted(0, "b", "b", "f", "r", ("a-1",))]
    )
    (reason,) = reasons_it_waited(trail, trail.tasks["b"])
    assert reason.text == "it never became ready: a-1 did not finish"
    assert reason.kind == "never ready"


def test_a_wait_for_any_worker_is_told_from_one_for_a_better_worker() -> None:
    held = Held(10.0, "b-1", "every worker that fits is busy or has too little memory free")
    trail = Trail.of([held if isinstance(event, Held) else event for event in events()])
    kinds = {reason.kind for reason in reasons_it_waited(trail, trail.tasks["b-1"])}
    assert kinds == {"busy", "inputs", "queue"}


def test_the_longest_wait_is_told_once_for_each_task() -> None:
    more = [
        Submitted(0.0, "b-2", "b", "train", "run-one"),
        Finished(20.0, "b-2", "slow-0", 5.0, 20.0, 10),
        Submitted(0.0, "c-1", "c", "train", "run-one"),
        Finished(20.0, "c-1", "slow-0", 1.0, 20.0, 10),
        TasksNamed(20.0, "c-1", (("id-1", "c-one"), ("id-2", "c-two"))),
    ]
    trail = Trail.of([*events(), *more])
    b, c = longest_wait_by_task(trail, 5)
    assert (b.key, b.wait_s) == ("b-1", 8.0)
    assert (c.key, c.wait_s, len(c.runs)) == ("c-1", 1.0, 2)
    assert [wait.key for wait in longest_wait_by_task(trail, 1)] == ["b-1"]


def test_what_still_waits_has_waited_to_the_end_of_the_log() -> None:
    trail = Trail.of([*events(), Submitted(1.0, "c-1", "c", "train", "run-one")])
    assert reasons_it_waited(trail, trail.tasks["c-1"]) == (
        Reason(19.0, "not yet given to a worker", "unplaced"),
    )


def test_summaries_by_name_of_the_task() -> None:
    a, b = task_summaries(Trail.of(events()))
    assert (a.task, a.n, a.n_finished, a.n_attempts) == ("a", 2, 2, 2)
    assert (a.median_run_s, a.median_wait_s, a.total_run_s) == (14.0, 0.0, 28.0)
    assert a.ran_on == (("slow", 1), ("fast", 1))
    assert (b.median_wait_s, b.longest_wait_s, b.moved_bytes) == (8.0, 8.0, 500)


def test_a_run_that_was_given_back_and_sent_again_counts_once() -> None:
    again = [
        Submitted(0.0, "g-1", "g", "train", "run-one", n_runs=3),
        Submitted(0.0, "g-2", "g", "train", "run-one", n_runs=2),
        TasksNamed(9.0, "g-1", (("id-1", "g-0"), ("id-2", "g-1"), ("id-3", "g-2"))),
        TasksNamed(9.0, "g-2", (("id-2", "g-1"), ("id-3", "g-2"))),
    ]
    (row,) = task_summaries(Trail.of(again))
    assert (row.n, row.n_runs) == (2, 3)
    (row,) = task_summaries(Trail.of(again[:2]))  # nothing tells that they are the same
    assert (row.n, row.n_runs) == (2, 5)


def test_the_run_time_of_one_of_a_group_is_its_share() -> None:
    grouped = [
        Submitted(0.0, "g-1", "g", "train", "run-one", n_runs=4),
        Finished(8.0, "g-1", "fast-0", 0.0, 8.0, 10),
        Submitted(0.0, "g-2", "g", "train", "run-one"),
        Finished(3.0, "g-2", "fast-0", 0.0, 3.0, 10),
    ]
    (row,) = task_summaries(Trail.of(grouped))
    assert (row.n, row.n_runs, row.median_run_s, row.median_each_s) == (2, 5, 5.5, 2.0)


def test_only_what_failed_counts_as_a_failed_try() -> None:
    others = [
        Started(20.5, "a-1", "slow-0"),  # made anew, and under way when the log ends
        Failed(20.0, "a-1", "slow-0", "given back before it began"),  # as older journals say it
    ]
    a, b = task_summaries(Trail.of([*events(), *others]))
    assert (a.n_failed, b.n_failed) == (0, 0)
    assert "failed tries" not in flow_report_markdown(Trail.of([*events(), *others]))
    a, b = task_summaries(Trail.of([*events(), Failed(21.0, "b-1", "slow-0", "worker-lost")]))
    assert {row.task: row.n_failed for row in (a, b)} == {"a": 0, "b": 1}


def moved() -> list[Event]:
    """`a` sent 3,000 bytes as 1,000 from two workers and shared 500; `b` was not coded."""
    chosen = CodecChoice("pco", 1, 0.1, 0.4, 0.15, "4.0 times faster than raw")
    return [
        Moved(20.0, "run-one", "a", "slow-0", 1, 1000, 400, 0, 0, 0.2, (("pco", 1000, 400),)),
        Moved(
            *(20.0, "run-one", "a", "fast-0", 2, 2000, 600, 500, 500, 0.3),
            (("pco", 1500, 100), ("raw", 500, 500)),
            (chosen, CodecChoice("raw", 1, 0.1, 0.1, 0.3, "nothing saves a tenth")),
        ),
        Moved(20.0, "run-one", "b", "fast-0", 1, 0, 0, 9000, 9000, 0.1),
        Moved(20.0, "another", "a", "fast-0", 1, 77, 77, 0, 0, 0.1),
    ]


def test_what_results_cost_on_their_ways_is_added_up_by_task() -> None:
    trail = Trail.of([*events(), *moved()]).only(["run-one"])
    b, a = move_summaries(trail)
    assert (b.task, b.shared_bytes, b.saved_s) == ("b", 9000, 0.0)
    assert (a.n_values, a.raw_bytes, a.wire_bytes, a.shared_bytes) == (3, 3000, 1000, 500)
    assert a.codecs == (("pco", 2500, 500), ("raw", 500, 500))
    assert a.saved_s == pytest.approx(0.25)  # what was sent raw saves and loses nothing
    assert a.choices[0].codec == "pco"


def test_the_report_says_what_compression_saved_and_why_it_was_chosen() -> None:
    told = flow_report_markdown(Trail.of([*events(), *moved()]).only(["run-one"]))
    assert (
        "Results that moved: 3.0 kB were sent as 1.0 kB; compression saved 67% of the "
        "bytes and about 250 ms. 9.5 kB were handed over in shared memory, without being sent."
    ) in told
    assert "pco 5.0, raw 1.0" in told
    assert "- **a**: 1 × pco, 4.0 times faster than raw; 1 × raw, nothing saves a tenth" in told


def test_what_was_sent_as_it_is_saved_nothing_and_needs_no_word_of_it() -> None:
    sent = Moved(20.0, "run-one", "a", "slow-0", 1, 1000, 1010, 0, 0, 0.2, (("raw", 1000, 1000),))
    log = [*events(), sent]
    told = flow_report_markdown(Trail.of(log))
    assert "Results that moved: 1.0 kB were sent uncompressed.\n" in told
    assert "saved" not in told
    assert "| results of | n | size | sent |\n" in told  # nothing shared, coded or chosen


def test_without_a_ledger_the_copies_between_workers_are_told() -> None:
    assert "Results that moved: 500 Bytes between workers." in flow_report_markdown(
        Trail.of(events())
    )
    still = [one for one in events() if not isinstance(one, Transferred)]
    assert "moved" not in flow_report_markdown(Trail.of(still))


def test_the_longest_waits_come_first() -> None:
    (wait,) = longest_waits(Trail.of(events()), 10)
    assert (wait.key, wait.worker, wait.wait_s) == ("b-1", "fast-0", 8.0)


def test_the_story_of_a_task() -> None:
    shifted = [*events(), Failed(21.0, "b-1", "slow-0", "worker-lost")]
    story = story_of(Trail.of(shifted), "b-1")
    assert (story.ready_s, story.placed_s, story.started_s, story.finished_s) == (10, 14, 18, 20)
    assert (story.worker, story.worker_class, story.policy, story.reason) == (
        "fast-0",
        "fast",
        "eft",
        "data",
    )
    assert story.candidates[0] == CHOSEN
    assert (story.transfer_s, story.transfer_bytes) == (1.0, 500)
    assert story.failures == (("slow-0", "worker-lost"),)


def test_runs_and_tasks_are_found_by_what_people_call_them() -> None:
    other = [Submitted(0.0, "c-1", "c", "predict", "run-two")]
    trail = Trail.of([*events(), *other])
    assert find_runs(trail, "run-one") == ("run-one",)
    assert find_runs(trail, "run-t") == ("run-two",)
    assert find_runs(trail, "train") == ("run-one",)
    with pytest.raises(JournalError, match=r"begins the names of 2 runs .*say more"):
        find_runs(trail, "run-")
    again = [*events(), Submitted(90.0, "d-1", "d", "train", "run-three")]
    assert find_runs(Trail.of(again), "train") == ("run-three",)
    with pytest.raises(JournalError, match="did you mean 'predict'"):
        find_runs(trail, "predcit")
    assert [task.key for task in find_tasks(trail, "a")] == ["a-1", "a-2"]
    assert [task.key for task in find_tasks(trail, "a-2")] == ["a-2"]
    assert [task.key for task in find_tasks(trail, "-1")] == ["a-1", "b-1", "c-1"]
    with pytest.raises(JournalError, match="its tasks are: a, b, c"):
        find_tasks(trail, "z")


def named() -> list[Event]:
    return [
        RunNamed(0.0, "run-one", "sapphire-owl", "train"),
        *events(),
        TasksNamed(21.0, "a-1", (("019a-aaaa-1", "a-12"),)),
        TasksNamed(21.0, "a-2", (("019a-bbbb-2", "a-13"), ("019a-bbbb-3", "a-14"))),
        TasksNamed(21.0, "b-1", (("019b-cccc-4", "weekly total"),)),
    ]


def test_tasks_are_found_by_the_names_and_ids_of_their_runs() -> None:
    trail = Trail.of(named())
    assert find_runs(trail, "sapphire-owl") == find_runs(trail, "sapphire") == ("run-one",)
    for wanted, keys in {
        "a-13": ["a-2"],
        "019a-bbbb-3": ["a-2"],
        "019b-c": ["b-1"],
        "weekly total": ["b-1"],
        "weekly": ["b-1"],
        "a": ["a-1", "a-2"],
        "a-1": ["a-1"],  # a Dask key, and the beginning of names
        "b-1": ["b-1"],
    }.items():
        assert [task.key for task in find_tasks(trail, wanted)] == keys, wanted
    with pytest.raises(JournalError, match=r"begins the ids of 2 task runs .*say more"):
        find_tasks(trail, "019a-bbbb")
    with pytest.raises(JournalError, match="did you mean 'weekly total'"):
        find_tasks(trail, "weakly totals")


def test_people_are_shown_names_and_no_keys() -> None:
    trail = Trail.of(named())
    (wait,) = longest_waits(trail, 10)
    assert (wait.name, wait.key) == ("weekly total", "b-1")
    story = story_of(trail, "a-2")
    assert story.name == "a-13 … a-14 (2 runs)"
    assert story.runs == (("019a-bbbb-2", "a-13"), ("019a-bbbb-3", "a-14"))
    assert story.run_name == "sapphire-owl"
    assert runs_in_words(trail) == "train, run sapphire-owl"
    assert "- **weekly total** waited 8 s: " in flow_report_markdown(trail)
    lacking = Trail.of(
        [
            Submitted(0.0, "a-1", "a", "f", "r"),
            Submitted(0.0, "b-1", "b", "f", "r", ("a-1",)),
            TasksNamed(1.0, "a-1", (("id", "a-77"),)),
        ]
    )
    (reason,) = reasons_it_waited(lacking, lacking.tasks["b-1"])
    assert reason.text == "it never became ready: a-77 did not finish"


def test_where_a_log_has_no_names_ids_and_keys_take_their_place() -> None:
    trail = Trail.of(events())
    assert story_of(trail, "b-1").name == "b-1"
    assert runs_in_words(trail) == "train, run run-one"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (5e-6, "5 µs"),
        (0.00099999, "1 ms"),
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (61.0, "61 s"),
        (600.0, "10 min"),
        (36_000.0, "10 h"),
    ],
)
def test_times_as_people_read_them(seconds: float | None, told: str) -> None:
    assert in_seconds(seconds) == told


def picture_in(markdown: str) -> str:
    (encoded,) = re.findall(r"!\[[^]]*\]\(data:image/svg\+xml;base64,([^)]*)\)", markdown)
    return b64decode(encoded).decode()


def test_the_report_has_a_sentence_a_picture_and_two_tables() -> None:
    markdown = flow_report_markdown(Trail.of(events()))
    assert "**3 task runs** took **20 s** on 2 workers, busy 75% of the time." in markdown
    assert "| a | 2 | 14 s | 0 s | 0 s |  | slow 1, fast 1 |" in markdown
    assert "- **b-1** waited 8 s: 3 s held back: fast-0 is soon free; 3 s in the queue" in markdown
    assert "failed tries" not in markdown
    ElementTree.fromstring(picture_in(markdown))


def test_the_report_says_what_is_missing() -> None:
    markdown = flow_report_markdown(
        Trail.of([*events(), Submitted(0.0, "c-1", "c", "train", "run-one")])
    )
    assert "**1 without a result**" in markdown


def test_failed_tries_have_a_column_where_there_are_some() -> None:
    failed = [*events(), Failed(21.0, "b-1", "slow-0", "worker-lost")]
    markdown = flow_report_markdown(Trail.of(failed))
    assert "| b | 1 | 2 s | 8 s | 8 s | 500 Bytes | fast 1 | 1 |" in markdown


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    """One worker without a class, nothing waited, nothing moved."""
    log: list[Event] = [
        WorkerJoined(0.0, "0", "", 1),
        Submitted(0.0, "a-1", "a", "f", "r"),
        Finished(5.0, "a-1", "0", 0.0, 5.0, 10),
    ]
    markdown = flow_report_markdown(Trail.of(log))
    assert "**1 task run** took **5 s** on 1 worker, busy 100% of the time." in markdown
    assert "| task | runs | median run |\n|---|--:|--:|\n| a | 1 | 5 s |" in markdown
    assert "Longest waits" not in markdown
    assert "worker 0" in picture_in(markdown)
    assert "waiting" not in picture_in(markdown)


REPLAY = Replay("sapphire-owl", ("stock", "srw-heft"))


def forecast_told(replayed_s: float, other_s: float) -> str:
    found = Forecast("srw-heft", 20.0, replayed_s, "stock", other_s)
    replay = Replay(REPLAY.run_name, REPLAY.policies, found)
    return flow_report_markdown(Trail.of(events()), replay=replay)


def test_the_report_says_what_another_policy_would_have_made_of_it_and_how_far_to_trust_that() -> (
    None
):
    told = forecast_told(replayed_s=19.0, other_s=26.0)
    assert (
        "with `stock` this run would have taken 26 s instead of 20 s (30% longer), says the "
        "simulator. How far to trust that: played with `srw-heft`, the policy that was in force, "
        "it says 19 s (5% shorter than it was). For more: "
        "`deepflow replay sapphire-owl --policy stock,srw-heft`"
    ) in told
    assert "may be none" not in told


def test_a_difference_within_the_error_is_called_none() -> None:
    assert "(5% shorter than it was), so the difference may be none." in forecast_told(19.0, 20.5)
    assert "it says 20 s (0% longer than it was). For more" in forecast_told(20.0, 24.0)


def test_a_simulation_that_misses_what_happened_is_not_to_be_trusted() -> None:
    told = forecast_told(replayed_s=10.0, other_s=40.0)
    assert "(50% shorter than it was), which is too far off to conclude anything." in told


def test_without_a_forecast_the_report_says_how_to_get_one() -> None:
    told = flow_report_markdown(Trail.of(events()), replay=REPLAY)
    assert (
        "What other policies would have made of this run: "
        "`deepflow replay sapphire-owl --policy stock,srw-heft`"
    ) in told
    replay = Replay("my run `x`", ("stock",), why_not="it is too short")
    told = flow_report_markdown(Trail.of(events()), replay=replay)
    assert (
        "made of this run (it is too short): "
        "`deepflow replay 'my run '\"'\"'x'\"'\"'' --policy stock`"
    ) in told
    assert "deepflow replay" not in flow_report_markdown(Trail.of(events()))


def test_nothing_to_report() -> None:
    assert flow_report_markdown(Trail.of([])) == "No task was submitted to Dask."
    ElementTree.fromstring(compact_svg(Trail.of([])))


def test_names_are_text_and_never_markup() -> None:
    evil = "<script>alert('x')</script>|`*_[a](b)&amp;"
    trail = Trail.of(
        [
            WorkerJoined(0.0, evil, evil, 1),
            Submitted(0.0, evil, evil, "f", "r"),
            Finished(9.0, evil, evil, 5.0, 9.0, 0),
        ]
    )
    markdown = flow_report_markdown(trail)
    text = re.sub(r"\(data:[^)]*\)", "", markdown)
    assert "<" not in text
    rows = [line.count("|") for line in text.splitlines() if "script" in line]
    assert rows == [7, 0]  # nothing moved, so that column is left out; the wait is in a list
    ElementTree.fromstring(picture_in(markdown))


def many(n_tasks: int, n_workers: int, n_names: int) -> list[Event]:
    chance = Random(0)
    log: list[Event] = [WorkerJoined(0.0, f"w-{i}", f"c{i % 3}", 2) for i in range(n_workers)]
    free_s = [0.0] * (2 * n_workers)
    for k in range(n_tasks):
        key, name = f"task-{k % n_names}-{k}", f"task-{k % n_names}"
        slot = min(range(len(free_s)), key=free_s.__getitem__)
        stopped_s = free_s[slot] + chance.lognormvariate(0, 0.7)
        log += [
            Submitted(0.0, key, name, "f", "r"),
            Finished(stopped_s, key, f"w-{slot // 2}", free_s[slot], stopped_s, 1),
        ]
        free_s[slot] = stopped_s
    return log


def test_the_report_stays_small_with_the_longest_names() -> None:
    log: list[Event] = []
    for i in range(40):
        long = f"{i:02d}" + "n" * 200
        log.append(WorkerJoined(0.0, long, long, 4))
        for k in range(60):
            key = f"{k:02d}{long}"
            log.append(Submitted(0.0, key, f"{k:02d}" + "t" * 200, "f", "r"))
            at_s = 10.0 * k + i % 7
            log.append(Finished(at_s + 5, key, long, at_s, at_s + 5 + k % 3, 0))
    assert len(flow_report_markdown(Trail.of(log)).encode()) < 50_000


@pytest.mark.parametrize(
    ("n_tasks", "n_workers", "n_names"), [(3000, 16, 12), (3000, 40, 400), (3000, 300, 12)]
)
def test_the_report_stays_small(n_tasks: int, n_workers: int, n_names: int) -> None:
    markdown = flow_report_markdown(Trail.of(many(n_tasks, n_workers, n_names)))
    assert len(markdown.encode()) < 50_000
    ElementTree.fromstring(picture_in(markdown))


def test_the_picture_shows_a_worker_as_busy_as_it_was() -> None:
    """One worker of two is busy half of the time: its boxes cover half of its row."""
    trail = Trail.of(
        [
            WorkerJoined(0.0, "w-0", "c", 1),
            WorkerJoined(0.0, "w-1", "c", 1),
            Submitted(0.0, "a-1", "a", "f", "r"),
            Submitted(0.0, "b-1", "b", "f", "r"),
            Finished(100.0, "a-1", "w-0", 0.0, 100.0, 0),
            Finished(100.0, "b-1", "w-1", 50.0, 100.0, 0),
        ]
    )
    svg = compact_svg(trail)
    boxes = re.findall(r"M([\d.]+) (\d+)h([\d.]+)v16h-", svg)
    assert [(float(x), float(wide)) for x, _, wide in boxes] == [(0.0, 640.0), (320.0, 320.0)]


@pytest.mark.parametrize("n_workers", [2, 16, 300])
def test_the_picture_has_no_ground_and_letters_that_read_on_any(n_workers: int) -> None:
    svg = compact_svg(Trail.of(many(400, n_workers, 12)))
    assert "<rect" not in svg
    assert ElementTree.fromstring(svg).attrib["width"] == "640"
    assert "fill:#7c7c7c" in svg
    assert "@media(max-width:" in svg  # larger letters where it is shown small


def test_rows_have_names_where_there_are_few_and_classes_where_there_are_many() -> None:
    few = compact_svg(Trail.of(many(100, 4, 3)))
    assert ">w-0, c0<" in few
    assert ">w-3, c0<" in few
    several = compact_svg(Trail.of(many(100, 16, 3)))
    assert ">c0: 6 workers<" in several
    assert "w-0" not in several
    assert ">c0: 100 workers<" in compact_svg(Trail.of(many(400, 300, 3)))
