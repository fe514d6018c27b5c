import numpy as np
import pytest

from embedder.core.quantization import Ranges, to_int8
from embedder.stores.open import to_query_codes


def test_a_component_that_never_varied_adds_to_a_score_what_it_is() -> None:
    ranges = Ranges(np.array([0.25, -1], np.float32), np.array([0.25, 1], np.float32))
    vector_D, query_D = np.array([0.25, 0.5], np.float32), np.array([2, 1], np.float32)
    [stored_D] = to_int8(vector_D[None], ranges)
    codes_D, scale, offset = to_query_codes(query_D, "int8", ranges)
    assert stored_D.astype(int) @ codes_D.astype(int) * scale + offset == pytest.approx(query_D @ vector_D, abs=0.01)
