import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.core.quantization import Ranges, fit_ranges, quantize
from embedder.core.schema import VECTORS
from embedder.core.spec import Quantization
from embedder.table.parts import assemble_rows, encode_parquet
from embedder.table.vectors import Codes, column_codes, from_bytes, vector_column
from tests.core.test_spec import SPEC
from tests.table.conftest import make_chunks, make_documents, make_vectors

QUANTIZATIONS: list[Quantization] = ["none", "int8", "binary"]


@pytest.fixture
def ranges() -> Ranges:
    return fit_ranges(make_vectors(100))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("num_rows", [0, 1, 6])
def test_codes_come_back_bit_for_bit(quantization: Quantization, num_rows: int, ranges: Ranges) -> None:
    codes_NX = quantize(make_vectors(num_rows), quantization, ranges)
    column = vector_column(codes_NX)
    assert column.type.equals(VECTORS[quantization])
    back_NX = column_codes(column)
    assert back_NX.dtype == codes_NX.dtype
    assert np.array_equal(back_NX.reshape(codes_NX.shape), codes_NX)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_codes_survive_serialization_to_bytes(quantization: Quantization, ranges: Ranges) -> None:
    codes_NX: Codes = quantize(make_vectors(6), quantization, ranges)
    spec = SPEC.model_copy(update={"dim": 8, "quantization": quantization})
    assert np.array_equal(from_bytes(codes_NX.tobytes(), spec), codes_NX)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_part_holds_codes_in_their_own_type(quantization: Quantization, ranges: Ranges) -> None:
    codes_NX = quantize(make_vectors(6), quantization, ranges)
    rows = assemble_rows(make_documents(), make_chunks().drop_columns(["token_ids"]), codes_NX, store_text=True)
    read = pq.read_table(io.BytesIO(encode_parquet(rows, {})))
    assert read.schema.field("embedding").type.equals(VECTORS[quantization])
    assert np.array_equal(column_codes(read["embedding"]), codes_NX)


def test_a_slice_of_a_column_gives_its_own_rows() -> None:
    vectors_ND = make_vectors(6)
    assert np.array_equal(column_codes(pa.chunked_array([vector_column(vectors_ND).slice(2, 3)])), vectors_ND[2:5])
