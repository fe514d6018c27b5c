import pytest

from embedder.core.template import escape, parse_template


def test_an_empty_value_takes_its_default_and_doubled_braces_are_braces() -> None:
    template = parse_template("{{{title|none}}} / {headings}\n{chunk} [{title}]")
    assert template.columns == ("title",)
    assert template.names == ("title", "headings")
    assert template.render({"title": "A"}) == ("{A} / \n", " [A]")
    assert template.render({"title": ""}) == ("{none} / \n", " []")


def test_an_escaped_text_renders_as_itself() -> None:
    assert parse_template(escape("{a} }{ {{") + "{chunk}").render({}) == ("{a} }{ {{", "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{title}", "holds {chunk} 0 times; write it once"),
        ("{chunk} {chunk}", "holds {chunk} 2 times; write it once"),
        ("{title {chunk}", "a brace without its partner"),
        ("title} {chunk}", "a brace without its partner"),
        ("{} {chunk}", "'{}' names no column"),
        ("{|none} {chunk}", "names no column"),
        ("{chunk|none}", "{chunk} is never empty and has no default"),
    ],
)
def test_a_malformed_template_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r".*") as refused:
        parse_template(text)
    assert problem in str(refused.value)
