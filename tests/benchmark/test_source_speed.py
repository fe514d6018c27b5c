from embedder.benchmark.source_files import WRITERS
from embedder.benchmark.source_speed import lay_out_sources, measure_sources
from embedder.demo.corpus import Document


def test_every_format_is_measured_beside_its_peer() -> None:
    documents = [Document(str(number), "title", f"text {number}\nof two lines, quoted", "m", "k", "u") for number in range(40)]
    speeds = measure_sources(documents, rounds=1, least_bytes=2000)
    assert [each.name for each in speeds] == [*WRITERS]
    assert all(each.documents_per_second > 0 and each.ratio > 0 and each.reader_ratio > 0 for each in speeds)
    assert " × fastavro" in lay_out_sources(speeds)
