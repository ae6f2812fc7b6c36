"""Text that is not UTF-8 goes where text goes: every run ends, in one state for flow and server."""

from __future__ import annotations

import os

from prefect import get_run_logger, tags, task
from prefect.artifacts import create_markdown_artifact

from tests.differential.cases import case
from tests.differential.told import ended, tell

BAD = os.fsdecode(b"caf\xe9.csv")
HALF = "\ud83d"
NUL = "a\x00b"
TEXTS = {"surrogate": BAD, "half": HALF, "nul": NUL, "line": "a\nb\r\u2028", "long": "ü" * 5000}


class Named(Exception):
    def __init__(self, path):
        super().__init__(path)
        self.path = path


def _all_end(*allowed):
    def check(found):
        wrong = {k: v for k, v in found.items() if v not in allowed}
        return f"{wrong}" if wrong else None

    return check


@task
def fails(text):
    raise FileNotFoundError(2, "No such file", text)


@task
def fails_own(text):
    raise Named(text)


@task
def give(text):
    return text


@task(task_run_name="{text}")
def named(text):
    return 1


@case(dict.fromkeys(TEXTS, "Failed"))
def in_the_message_of_an_error():
    return {k: ended(fails.submit(text)) for k, text in TEXTS.items()}


@case(dict.fromkeys(TEXTS, "Failed"))
def in_an_error_of_ones_own():
    return {k: ended(fails_own.submit(text)) for k, text in TEXTS.items()}


@case(TEXTS)
def in_a_value():
    return {k: tell(lambda t=text: give.submit(t).result()) for k, text in TEXTS.items()}


@case(TEXTS)
def in_a_map():
    return dict(zip(TEXTS, give.map(list(TEXTS.values())).result(), strict=True))


@case({k: {text: [text]} for k, text in TEXTS.items()})
def as_a_key():
    return {k: tell(lambda t=text: give.submit({t: [t]}).result()) for k, text in TEXTS.items()}


@case(_all_end("Completed", "Failed", "Crashed"))
def in_the_name_of_a_run():
    return {k: ended(named.submit(text)) for k, text in TEXTS.items()}


def _all_end_or_are_refused(found):
    wrong = {k: v for k, v in found.items() if v.startswith("still")}
    return f"{wrong}" if wrong else None


@case(_all_end_or_are_refused)
def in_a_tag():
    found = {}
    for k, text in TEXTS.items():
        if k == "long":
            continue
        with tags(text):
            found[k] = tell(lambda: ended(give.submit(1)))
    return found


@case(_all_end("Completed", "Failed", "Crashed"))
def in_a_log():
    @task
    def logs(text):
        get_run_logger().warning("read %s", text)
        return 1

    return {k: ended(logs.submit(text)) for k, text in TEXTS.items()}


@case(_all_end("Completed", "Failed", "Crashed"))
def in_the_name_of_a_task():
    def call(text):
        return ended(task(lambda: 1, name=text).submit())

    return {k: tell(lambda t=text: call(t)) for k, text in TEXTS.items() if k != "long"}


@case(_all_end("Completed", "Failed", "Crashed"))
def in_an_artifact():
    @task
    def writes(text):
        create_markdown_artifact(text)
        return 1

    return {k: ended(writes.submit(text)) for k, text in TEXTS.items() if k == "line"}


@case(["Completed"] * 3)
def runs_after_a_bad_one_are_well():
    ended(fails.submit(BAD))
    ended(named.submit(HALF))
    return [ended(f) for f in (*give.map(["x", "y"]), give.submit("z"))]
