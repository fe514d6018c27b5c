"""Problems of the settings are reported together, and an outage at once."""

import errno

import pytest

from embedder.core.errors import CommitError, ConfigError, SourceError, StorageError, TableDamagedError
from embedder.core.problems import Problems


def fail(error: Exception, cause: Exception | None = None) -> None:
    raise error from cause


def test_all_problems_are_one_error() -> None:
    problems = Problems()
    assert problems.check(lambda: 3) == 3
    assert problems.check(lambda: fail(StorageError("s3://gone: not there"))) is None
    assert problems.check(lambda: fail(ConfigError("embedding.depth=0: choose 1 to 6"))) is None
    with pytest.raises(ConfigError, match=r"s3://gone: not there\nembedding\.depth=0: choose 1 to 6"):
        problems.raise_all()


def test_no_problem_raises_nothing() -> None:
    Problems().raise_all()


@pytest.mark.parametrize(("raised", "shown"), [(SourceError, SourceError), (StorageError, StorageError), (CommitError, StorageError)])
def test_an_outage_is_raised_at_once_and_is_no_wrong_setting(raised: type[Exception], shown: type[Exception]) -> None:
    problems = Problems()
    problems.check(lambda: fail(ConfigError("embedding.depth=0: choose 1 to 6")))
    with pytest.raises(shown, match="cannot list it"):
        problems.check(lambda: fail(raised("s3://docs: cannot list it"), ConnectionResetError("reset by peer")))


def test_a_share_that_fails_is_no_wrong_setting_and_an_unknown_answer_of_s3_may_be_one() -> None:
    problems = Problems()
    with pytest.raises(StorageError, match="cannot list it"):
        problems.check(lambda: fail(StorageError("/share: cannot list it"), OSError(errno.ESTALE, "Stale file handle", "/share")))
    problems.check(lambda: fail(StorageError("s3://docs: cannot list it"), OSError(errno.EIO, "PermanentRedirect")))
    assert problems.found == ["s3://docs: cannot list it"]


def test_a_damaged_table_is_raised_at_once_and_is_no_wrong_setting() -> None:
    with pytest.raises(TableDamagedError, match="restore the log"):
        Problems().check(lambda: fail(TableDamagedError("./out: the log is damaged; restore the log")))
