"""What the tests share: a small model, and golden files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"

TINY = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1024,
}
"""A Llama that traces in a moment and whose sizes divide by small powers of two."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="take the present answers as golden, after reading the diff")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the small model's config.json."""
    path = tmp_path_factory.mktemp("tiny-llama") / "config.json"
    path.write_text(json.dumps(TINY))
    return str(path)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Compare a JSON document with a golden file: the same keys and texts, numbers within rounding."""

    def compare(name: str, document: Any) -> None:
        path = GOLDEN / f"{name}.json"
        if request.config.getoption("--accept"):
            path.write_text(json.dumps(document, indent=1) + "\n")
        assert document == _approximately(json.loads(path.read_text()))

    return compare


def _approximately(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _approximately(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_approximately(each) for each in value]
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
