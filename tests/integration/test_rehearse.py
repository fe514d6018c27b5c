"""The rehearsal of a schedule, as `make rehearse` runs it, on a few documents per shard."""

import re
import subprocess
import sys

import pytest

from embedder.demo.nightly_edits import NUM_DELETED, NUM_EDITED

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(900)]

PER_SHARD = 12


def test_four_nights_make_three_versions_and_reuse_unchanged_documents(repository: str) -> None:
    command = [sys.executable, "-m", "jobs.rehearse", "--documents-per-shard", str(PER_SHARD)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, monday, tuesday, wednesday, thursday, shown = done.stdout.split("\n--- ")
    embedded = [int(re.search(r"^embedded +([\d,]+) documents", night, re.MULTILINE)[1]) for night in (monday, tuesday, wednesday)]  # type: ignore[index]
    assert embedded == [4 * PER_SHARD, PER_SHARD + NUM_EDITED, 0]
    assert "nothing to do: s3://nightly/table" in thursday
    history, first_diff, second_diff = shown.split("\n$ ")[1:]
    assert [line.split()[0] for line in history.splitlines()[1:] if " run " in line] == ["2", "1", "0"]
    came, changed, left = re.findall(r"([\d,]+) rows", first_diff)
    assert (int(came) >= PER_SHARD, int(changed) >= NUM_EDITED, left) == (True, True, "0")
    came, changed, left = re.findall(r"([\d,]+) rows", second_diff)
    assert (changed, int(left) - int(came) >= NUM_DELETED) == ("0", True)
