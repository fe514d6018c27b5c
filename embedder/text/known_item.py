"""A text → its first sentence, to search with, and the rest, to be found: relevance without labels."""

import re

_SENTENCE = re.compile(r"(?P<first>\S.*?[.!?\u3002\uff01\uff1f])(?:\s+|(?<=[\u3002\uff01\uff1f]))(?P<rest>\S.*)", re.DOTALL)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
"""A character of a script without spaces, or what stands between spaces."""
_MOST_QUERY_CHARS = 400
_LEAST_WORDS = 3


def split_sentence(text: str) -> tuple[str, str]:
    """Return the first sentence, or '' if it cannot be a query, and the text without it."""
    found = _SENTENCE.fullmatch(text.strip())
    if found is None or len(found["first"]) > _MOST_QUERY_CHARS:
        return "", text
    num_words = min(len(_WORD.findall(part)) for part in found.groups())
    return (found["first"], found["rest"]) if num_words >= _LEAST_WORDS else ("", text)
