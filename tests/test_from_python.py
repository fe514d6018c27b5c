"""`import embedder` is light; its names are imported on first use."""

import subprocess
import sys

import pytest

import embedder

HEAVY = ("numpy", "pyarrow", "pydantic", "ray", "torch", "transformers", "yaml")


def test_importing_the_package_imports_nothing_heavy() -> None:
    shown = "sorted(set(sys.modules) & set(heavy)), embedder.__all__, set(embedder.__all__) <= set(dir(embedder))"
    code = f"import sys, embedder; heavy = {HEAVY!r}; print({shown})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] ['BatchEncoder', 'embed', 'open_table'] True\n"


def test_opening_a_table_imports_neither_ray_nor_torch() -> None:
    code = "import sys, embedder; embedder.open_table; print(sorted(set(sys.modules) & {'ray', 'torch', 'transformers'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'embedder' has no attribute 'embedd'"):
        _ = embedder.embedd
