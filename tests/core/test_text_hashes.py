"""A text is known again by its words."""

import numpy as np

from embedder.core.text_hashes import count_seen, hash_texts


def test_texts_of_the_same_words_are_one_and_others_are_not() -> None:
    seen = np.unique(hash_texts(["A title\nand a text.", "another", "broken \ud800"]))
    assert len(seen) == 3
    assert count_seen([" A title  and a text.\n", "another text", "another", "", "broken \ud800"], seen) == 3
    assert count_seen([], seen) == 0
