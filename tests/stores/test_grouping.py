"""Parts are put together to groups of a first load, each looked at once."""

from collections import Counter

from embedder.stores.load import GROUP_ROWS, group_parts


class Counted(dict[str, int]):
    """Rows by part, and how often each was asked for."""

    def __init__(self, rows: dict[str, int]) -> None:
        super().__init__(rows)
        self.asked: Counter[str] = Counter()

    def __getitem__(self, name: str) -> int:
        self.asked[name] += 1
        return super().__getitem__(name)


def test_groups_of_whole_parts_reach_their_size_and_no_part_is_counted_twice() -> None:
    rows = Counted({f"part-{number}": GROUP_ROWS // 40 for number in range(100)} | {"large": 3 * GROUP_ROWS, "small": 1})
    groups = list(group_parts(list(rows), rows))
    assert [len(group) for group in groups] == [40, 40, 21, 1]
    assert [name for group in groups for name in group] == list(rows)
    assert set(rows.asked.values()) == {1}
