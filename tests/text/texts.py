"""Difficult texts: scripts, emoji, combining marks, ligatures, control characters, runs of whitespace, and long runs without a safe split
point."""

from hypothesis import strategies as st

from tests.text.tokenizers_for_tests import SENTENCES

FRAGMENTS = (
    *SENTENCES,
    *("word", "Don't", "naïve", "e\u0301lan", "слово", "שלום עולם", "مرحبا", "日本語のテキスト", "。", "！\n"),
    *("한국어", "กำลังทำ", "7", "1,024.5"),
    *("😀", "👩‍👩‍👧‍👦", "🇨🇭", "ﬁ", "½", "ﰀ", "\u200b", "\u0000", "\ufeff", "<mask>", "[SEP]", "</s>", "▁", "Ġ", "_", "x" * 40, "ab" * 60),
    *(" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "    \n   "),
)
_few = st.lists(st.sampled_from(FRAGMENTS), max_size=3).map(" ".join)
_runs = st.sampled_from(("漢", "-", "QUJD", "\n", ", ", "| ", "。", "\u200b", "😀")).map(lambda part: (600 * part)[:600])
texts = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join),
    st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(" ".join),
    st.tuples(_few, _runs, _few).map(" ".join),
    st.text(max_size=80),
)
