import io
import re

import pytest

from isoflop.train.progress import ProgressBar


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, *, seconds_per_step, steps=100, done=0, enabled=True):
    clock, stream = Clock(), io.StringIO()
    monkeypatch.setattr("isoflop.train.progress.time", clock)
    monkeypatch.setattr("sys.stderr", stream)
    with ProgressBar(enabled=enabled, steps=steps, done=done, batch_tokens=512, flops_per_step=1e9) as bar:
        for step in range(done + 1, steps + 1):
            clock.now += seconds_per_step
            bar.update(step, 3.25)
    return stream.getvalue()


def test_where_there_is_no_terminal_lines_say_how_far_it_is(monkeypatch):
    lines = shown(monkeypatch, seconds_per_step=1.0).splitlines()
    assert [re.search(r"step (\d+)/100", line)[1] for line in lines] == [str(step) for step in range(10, 101, 10)]
    assert lines[2] == "training  step 30/100 (30%)  loss 3.250  512 tok/s  1 GFLOP/s  70 s left"


def test_slow_runs_say_something_every_half_minute(monkeypatch):
    lines = shown(monkeypatch, seconds_per_step=16.0).splitlines()
    assert len(lines) >= 50


@pytest.mark.parametrize("force", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_no_control_character_reaches_a_file(monkeypatch, force):
    monkeypatch.setenv(force, "1")
    text = shown(monkeypatch, seconds_per_step=1.0, done=50)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert text.startswith("training  step 60/100")


def test_short_and_silent_runs_say_nothing(monkeypatch):
    assert shown(monkeypatch, seconds_per_step=0.01) == ""
    assert shown(monkeypatch, seconds_per_step=1.0, enabled=False) == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Terminal())
    assert ProgressBar(enabled=True, steps=2, done=0, batch_tokens=1, flops_per_step=1).bar is not None
