"""Predicted memory against the buffers that XLA assigns for TPUs; the compiler is optional, and slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiled import llama, mlp, questions, under

from perfmodel.errors import LayoutError
from perfmodel.trace import trace
from perfmodel.verify import tpu
from perfmodel.verify.memory import Buffers, opened, verify_memory

NEAR = 0.1


@pytest.mark.slow
@pytest.mark.skipif(not tpu.installed(), reason="the TPU compiler is not installed: pip install libtpu")
def test_memory_is_what_the_tpu_compiler_assigns() -> None:
    """Arguments to the byte; all of it within a tenth and the gaps that the compiler itself leaves in its heap."""
    for found in verify_memory(questions()):
        assert found.arguments == found.compiled.arguments
        assert abs(found.total - found.compiled.total) <= NEAR * found.compiled.total + found.compiled.gaps, found


def test_without_the_compiler_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu, "installed", lambda: False)
    with pytest.raises(LayoutError, match="libtpu"):
        verify_memory([(mlp(), under("fsdp=4", 64))])


def test_as_many_ranks_as_no_topology_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu, "installed", lambda: True)
    layout = under("fsdp=4", 96)
    with pytest.raises(LayoutError, match="got 6 ranks, expected one of 1, 4, 8"):
        verify_memory([(mlp(), type(layout)(dp=6, zero=0, mb=8, global_batch=96))])


def test_what_the_compiler_says_is_read_and_its_refusal_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heap of 6 MiB, of which 1 is a gap; arguments of 2.5 MiB whose tiles add 1 kB; half a MiB of new results."""
    said = (
        '{"arguments": 2622440, "results": 1048576, "replaced": 524288, "temporaries": 6291456, "peak": 8389608, '
        '"parameters": "entry_computation_layout={(bf16[1024,1024]{1,0:T(8,128)(2,1)}, /*index=1*/f32[131072]{0}", '
        '"largest": [[4194304.0, "f32[1024,1024], bf16[2,1024,1024]"]]}'
    )

    def answer(topology: str, paths: list[Path]) -> None:
        assert topology == "v5e:2x2"
        paths[0].with_suffix(".json").write_text(said)
        for path in paths[1:]:
            path.with_suffix(".error").write_text("RESOURCE_EXHAUSTED: Used 16.21G of 15.75G hbm.")

    monkeypatch.setattr(tpu, "installed", lambda: True)
    monkeypatch.setattr(tpu, "run_child", answer)
    question = mlp(), under("fsdp=4,zero=3,recompute=none", 64)
    (found,) = verify_memory([question])
    assert found.compiled == Buffers(
        arguments=2 * 2**20 + 2**19,
        padding=1000,
        results=2**19,
        temporaries=6 * 2**20,
        gaps=2622440 + 2**19 + 6 * 2**20 - 8389608,
        largest=((2.0**22, "f32[1024,1024], bf16[2,1024,1024]"),),
    )
    assert found.difference == found.total / (2622440 + 2**19 + 6 * 2**20) - 1.0
    with pytest.raises(LayoutError, match=r"Used 16\.21G of 15\.75G"):
        verify_memory([question, question])


def test_the_largest_buffers_are_those_of_the_first_table_of_the_report() -> None:
    row = "   32.00MiB( 23%);   {};     16236544;                1; {}\n"
    table = row.format("32.00MiB", "f32[2,4,1,1024,1024]") + row.format("512.0KiB", "bf16[256,1024], f32[2,1024]")
    report = f"Memory Space: default (color=0)\n{table}  The rest is not shown.\n\n{row.format('4B', 's32[]')}"
    assert tpu.largest(report) == [(2.0**25, "f32[2,4,1,1024,1024]"), (2.0**19, "bf16[256,1024], f32[2,1024]")]


def test_opened_kernels_are_ordinary_ops_of_as_many_flops() -> None:
    whole, apart = trace(llama("full")), trace(opened(llama("full")))
    assert any(op.kind.startswith("perfmodel.") for _, op in whole.walk())
    assert not any(op.kind.startswith("perfmodel.") for _, op in apart.walk())
    assert apart.flops() == whole.flops()
    assert [(p.name, p.role, p.alias) for p in apart.parameters] == [
        (p.name, p.role, p.alias) for p in whole.parameters
    ]
