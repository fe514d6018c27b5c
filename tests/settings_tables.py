"""Settings → the tables of configs/README.md: key, default, and the help text of the setting.

python -m tests.settings_tables rewrites each table between its markers, `<!-- settings: JOB SECTION -->` and `<!-- end -->`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from embedder.calibrate.config import CalibrateConfig
from embedder.config.embed import EmbedConfig
from embedder.config.flags import section_type
from embedder.run.recut import RecutConfig
from embedder.stores.config import LoadConfig
from embedder.sweep.config import SweepConfig

FILE = Path(__file__).parents[1] / "configs/README.md"
MODELS: dict[str, type[BaseModel]] = {
    "embed": EmbedConfig,
    "calibrate": CalibrateConfig,
    "sweep": SweepConfig,
    "recut": RecutConfig,
    "load": LoadConfig,
}
TABLE = re.compile(r"(<!-- settings: (\w+) ([\w.]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def list_sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield each section below a model with its dotted path, nested ones included."""
    for name, field in model.model_fields.items():
        if section := section_type(field.annotation):
            yield path + name, section
            yield from list_sections(section, f"{path}{name}.")


def write_table(job: str, path: str) -> str:
    """Return one section's table, without the settings that it inherits from another section."""
    section = dict(list_sections(MODELS[job]))[path]
    inherited = {name for base in section.__bases__ if issubclass(base, BaseModel) for name in base.model_fields}
    rows = [
        f"| `{path}.{name}` | {_write_default(field)} | {_escape(field.description or '')} |"
        for name, field in section.model_fields.items()
        if name not in inherited and (section_type(field.annotation) is None or field.default == ())
    ]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows, ""])


def _write_default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ({}, ()):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def rewrite(text: str) -> str:
    """Return the page with every table as the settings are now."""
    return TABLE.sub(lambda found: found[1] + write_table(found[2], found[3]), text)


if __name__ == "__main__":
    FILE.write_text(rewrite(FILE.read_text()))
