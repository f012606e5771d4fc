"""What a script prints: as much as is allowed, and nothing that would steer a terminal."""

from __future__ import annotations

import pytest

from tests.sandbox.world import LATE_S

pytestmark = pytest.mark.xdist_group("sandbox")


@pytest.mark.parametrize("stream", [1, 2])
def test_ten_gigabytes_of_output(world, stream):
    ran = world.run(
        """
        import os, time
        for _ in range(10 << 10):
            os.write(STREAM, b"x" * (1 << 20))
        time.sleep(60)
        """,
        STREAM=stream,
        output_kib=100,
        wall_s=60,
    )

    assert ran.outcome == "output"
    assert ran.seconds < LATE_S, "it was ended then"
    assert ran.truncated
    assert len(ran.stdout) + len(ran.stderr) == 100 << 10


def test_output_on_both_streams_counts_together(world):
    ran = world.run(
        "import sys\nfor _ in range(100): print('x' * 999); print('y' * 999, file=sys.stderr)", output_kib=100
    )

    assert ran.outcome == "output"
    assert len(ran.stdout) + len(ran.stderr) == 100 << 10


def test_as_much_output_as_is_allowed(world):
    ran = world.run("print('x' * (100 * 1024 - 1))", output_kib=100)

    assert (ran.outcome, ran.truncated) == ("exited", False)
    assert ran.stdout == "x" * (100 * 1024 - 1) + "\n"


def test_a_very_long_line_and_no_line_at_all(world):
    assert world.run("print('x' * 100_000, end='')").stdout == "x" * 100_000
    assert world.run("").stdout == ""


def test_output_that_is_no_text(world):
    ran = world.run("import os; os.write(1, bytes(range(256)))")

    assert ran.outcome == "exited"
    assert ran.stdout.isprintable() or "\n" in ran.stdout
    assert "\x1b" not in ran.stdout
    assert "\ufffd" in ran.stdout


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("50%\r100%", r"50%\r100%"),
        ("line\r\nline", "line\nline"),
        ("\x9b31m", r"\x9b31m"),
        ("score \u202e001", r"score \u202e001"),
        ("a\u2028b", r"a\u2028b"),
        ("16 是答案 👩‍🎓\t✓", "16 是答案 👩‍🎓\t✓"),
    ],
)
def test_what_would_steer_a_terminal_is_spelled_out(world, written, shown):
    ran = world.run("import sys; sys.stdout.buffer.write(WRITTEN.encode())", WRITTEN=written)

    assert ran.stdout == shown
