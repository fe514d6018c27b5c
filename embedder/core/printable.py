"""Text from documents, file names and logs → text that is safe to print: a terminal acts on control characters."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls, line and paragraph separators, characters that reorder text (Unicode TR 36), and lone surrogates."""
_CONTROL_BUT_NEWLINE = re.compile(f"(?!\n){_CONTROL.pattern}")


def printable(text: object) -> str:
    r"""Return a value as one line of text, with each control character as its Python escape, such as `\x1b` or `\n`."""
    return _CONTROL.sub(_escape, str(text))


def printable_lines(text: str) -> str:
    """Return a text with each control character but the newline as its Python escape."""
    return _CONTROL_BUT_NEWLINE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
