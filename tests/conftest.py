"""What the tests share: a small model, and golden files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes tells of the host only
settings.load_profile("untimed")

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
    parser.addoption(
        "--accept", metavar="WHY", help="take the present answers as golden, after reading the diff; why, in words"
    )


def pytest_configure(config: pytest.Config) -> None:
    why = config.getoption("--accept")
    if why is not None and len(why.split()) < 3:
        raise pytest.UsageError(f"--accept: got {why!r}, expected a reason: say in words why answers change")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the small model's config.json."""
    path = tmp_path_factory.mktemp("tiny-llama") / "config.json"
    path.write_text(json.dumps(TINY))
    return str(path)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Compare a JSON document with a golden file: the same keys and texts, numbers within rounding. The file also keeps
    the reason why it was last accepted.
    """

    def compare(name: str, document: Any) -> None:
        path, why = GOLDEN / f"{name}.json", request.config.getoption("--accept")
        known = json.loads(path.read_text()) if path.exists() else {}
        known.pop("accepted", None)
        if why and document != approximately(known):
            path.write_text(json.dumps({"accepted": why, **document}, indent=1) + "\n")
        else:
            assert document == approximately(known)

    return compare


def approximately(value: Any) -> Any:
    """Equal to the same keys and texts, and to numbers within rounding."""
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    if isinstance(value, list):
        return [approximately(each) for each in value]
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
