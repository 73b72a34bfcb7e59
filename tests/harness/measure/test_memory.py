from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.measure import memory
from harness.measure.errors import MeasurementError
from harness.measure.memory import file_size, peak_memory, track_peak_memory, training_bytes

CPU = torch.device("cpu")
MEBIBYTES = 64


def allocate() -> None:
    """Pages from the kernel, written to and given back: malloc might have some left of earlier tests."""
    with mmap.mmap(-1, MEBIBYTES * 2**20) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1


@pytest.mark.skipif(not memory.STATM.is_file(), reason="needs /proc")
def test_peak_sees_what_was_freed_again() -> None:
    held = peak_memory(allocate, CPU)
    assert held.growth_mib == pytest.approx(MEBIBYTES, abs=MEBIBYTES / 8)
    assert "resident set" in held.how


@pytest.mark.skipif(not memory.STATM.is_file(), reason="needs /proc")
def test_a_block_that_needs_nothing_grows_by_next_to_nothing() -> None:
    with track_peak_memory(CPU) as tracker:
        pass
    assert 0 <= tracker.result.growth_mib < 8


def test_without_proc_the_process_maximum_is_reported_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATM", Path("/nowhere"))
    result = peak_memory(lambda: None, CPU)
    assert "process" in result.how
    assert result.peak_mib >= result.baseline_mib > 1


def test_result_before_the_end_is_an_error() -> None:
    with track_peak_memory(CPU) as tracker, pytest.raises(MeasurementError, match="ended"):
        _ = tracker.result


def test_unknown_device_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="meta"):
        peak_memory(lambda: None, torch.device("meta"))


def test_closed_account_of_training() -> None:
    frozen, trained = nn.Linear(10, 10).requires_grad_(False), nn.Linear(10, 5)
    norm = nn.BatchNorm1d(4, affine=False)  # buffers: mean, variance (float32), batches (int64)
    account = training_bytes(frozen, trained, norm)
    assert account.parameters == 4 * (110 + 55)
    assert account.gradients == 4 * 55
    assert account.optimizer_states == 2 * 4 * 55
    assert account.buffers == 4 * 8 + 8
    assert account.total == 4 * (110 + 55 + 55 + 110 + 8) + 8


def test_shared_weights_are_kept_once() -> None:
    layer = nn.Linear(3, 3, bias=False)
    assert training_bytes(layer, layer).parameters == 36


def test_size_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b").write_bytes(b"123")
    assert file_size(tmp_path / "a") == 5
    assert file_size(tmp_path) == 8
