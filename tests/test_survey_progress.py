import io
import time

from survey.progress import Progress, Watch


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_rate_counts_only_what_this_run_did():
    # 60 done of which 50 were there before: 10 in 5 s is 2.0 a second; the other 140 take 70 s.
    progress = Progress("shard", 200, "patches", start=50, stream=io.StringIO())
    assert progress.line(60, seconds=5.0, note="2 skipped") == "shard: 60 of 200 patches, 2.0 patches/s, 1:10 left, 2 skipped"
    assert progress.line(200, seconds=75.0).endswith("2.0 patches/s, 1:15 in all")
    assert progress.line(50, seconds=0.0) == "shard: 50 of 200 patches"


def test_a_log_gets_few_lines_and_one_end():
    stream = io.StringIO()
    progress = Progress("shard", 3, "patches", stream=stream)
    for done in (1, 2, 3, 3):
        progress.update(done)
    lines = stream.getvalue().splitlines()
    assert [line.split(" patches")[0] for line in lines] == ["shard: 1 of 3", "shard: 3 of 3"]


def test_a_terminal_line_is_rewritten():
    stream = Terminal()
    progress = Progress("shard", 2, "patches", stream=stream)
    progress.update(1)
    progress.update(2)
    assert stream.getvalue().count("\r\033[K") == 2
    assert stream.getvalue().count("\n") == 1


def test_watch_asks_until_the_work_ends():
    stream, asked = io.StringIO(), []
    with Watch(Progress("x", 5, "y", stream=stream), lambda: asked.append(1) or min(len(asked), 5), seconds=0.01):
        end = time.monotonic() + 5
        while len(asked) < 5 and time.monotonic() < end:
            time.sleep(0.01)
    assert "x: 5 of 5 y" in stream.getvalue()
    number = len(asked)
    time.sleep(0.05)
    assert len(asked) == number
