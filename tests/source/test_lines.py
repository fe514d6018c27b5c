import pytest

from embedder.source.lines import CutLine, LastLine, read_lines

DATA = b'a\n\nlonger than "any" block\r\nlast without newline'


def blocks_of(data, size):
    return (data[start : start + size] for start in range(0, len(data), size))


def test_lines_do_not_depend_on_blocks():
    for size in range(1, len(DATA) + 1):
        lines = list(read_lines(blocks_of(DATA, size), 100))
        assert lines == DATA.split(b"\n")
        assert [type(line) for line in lines] == [bytes] * 3 + [LastLine]


@pytest.mark.parametrize("most_bytes", [5, 19, 20, 24, 25])
def test_only_the_start_of_a_line_that_is_too_long_is_kept(most_bytes):
    for size in range(1, len(DATA) + 1):
        lines = list(read_lines(blocks_of(DATA, size), most_bytes))
        assert [type(line) is CutLine for line in lines] == [len(line) > most_bytes for line in DATA.split(b"\n")]
        assert all(whole.startswith(line) for line, whole in zip(lines, DATA.split(b"\n"), strict=True))
        assert lines[2].count(b'"') == 2 or type(lines[2]) is CutLine
        assert type(lines[2]) is not CutLine or lines[2].num_quotes == 2
