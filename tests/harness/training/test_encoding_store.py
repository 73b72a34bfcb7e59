from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.training.encoding_store import GIB, MIB, Budgets, EncodingStore

ROW = torch.arange(24, dtype=torch.float32).view(4, 6) / 7


def store_in(
    folder: Path | None, memory_bytes: int = 0, disk_bytes: int = 10**6, **more: Any
) -> EncodingStore:
    return EncodingStore(
        Budgets(memory_bytes / MIB, disk_bytes / GIB, folder, **more), on_note=lambda text: None
    )


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*/*") if path.is_file())


def test_memory_is_filled_before_the_disk(tmp_path: Path) -> None:
    store = store_in(tmp_path, memory_bytes=ROW.nbytes)
    store.put("e", "aa", ROW)
    store.put("e", "bb", 2 * ROW)
    assert len(store) == 1
    assert store.memory_bytes == ROW.nbytes
    for path in tmp_path.glob("e/aa/*"):
        path.unlink()
    assert torch.equal(store.get("e", "aa"), ROW)  # type: ignore[arg-type]
    assert torch.equal(store.get("e", "bb"), 2 * ROW)  # type: ignore[arg-type]
    assert store.get("e", "cc") is None
    assert store.get("other", "aa") is None


def test_another_process_finds_what_is_on_disk(tmp_path: Path) -> None:
    store_in(tmp_path).put("e", "aa", ROW)
    found = store_in(tmp_path, memory_bytes=1000).get("e", "aa")
    assert found is not None
    assert torch.equal(found, ROW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_are_copies_of_any_type(dtype: torch.dtype, tmp_path: Path) -> None:
    store = store_in(tmp_path, memory_bytes=1000)
    row = ROW.to(dtype)
    expected = row.clone()
    store.put("e", "aa", row)
    row.zero_()
    for found in (store.get("e", "aa"), store_in(tmp_path).get("e", "aa")):
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, expected)


def test_half_precision_halves_the_size_and_returns_the_stored_values(tmp_path: Path) -> None:
    store = store_in(tmp_path, memory_bytes=1000, precision="half")
    kept = store.put("e", "aa", ROW)
    assert kept.dtype == torch.float16
    assert store.memory_bytes == ROW.nbytes // 2
    torch.testing.assert_close(kept.float(), ROW, rtol=2**-11, atol=0)
    assert torch.equal(store.get("e", "aa"), kept)  # type: ignore[arg-type]
    too_large = ROW + 70_000  # beyond the range of 16 bits
    assert torch.equal(store.put("e", "bb", too_large), too_large)


def damage(kind: str, content: bytes) -> bytes:
    middle = len(content) // 2
    return {
        "cut short": content[:-5],
        "empty": b"",
        "a flipped bit in the numbers": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        "a flipped bit in the header": content[:middle]
        + bytes([content[middle] ^ 4])
        + content[middle + 1 :],
        "a flipped bit in the digest": bytes([content[0] ^ 1]) + content[1:],
        "something else": b"nothing of the kind" * 10,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "cut short",
        "empty",
        "a flipped bit in the numbers",
        "a flipped bit in the header",
        "a flipped bit in the digest",
        "something else",
    ],
)
def test_a_damaged_entry_counts_as_missing_and_is_replaced(kind: str, tmp_path: Path) -> None:
    store_in(tmp_path).put("e", "aa", ROW)
    (path,) = entries(tmp_path)
    path.write_bytes(damage(kind, path.read_bytes()))
    store = store_in(tmp_path)
    assert store.get("e", "aa") is None
    store.put("e", "aa", ROW)
    assert torch.equal(store.get("e", "aa"), ROW)  # type: ignore[arg-type]


def test_entry_is_not_returned_for_another_key(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.put("e", "aa", ROW)
    store.put("e", "ab", 2 * ROW)
    one, other = entries(tmp_path)
    one.replace(other)
    assert store.get("e", "ab") is None


def test_memory_is_used_if_the_folder_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    notes: list[str] = []
    budgets = Budgets(ROW.nbytes / MIB, 1, tmp_path / "file" / "encodings")
    store = EncodingStore(budgets, notes.append)
    store.put("e", "aa", ROW)
    store.put("e", "bb", ROW)
    assert torch.equal(store.get("e", "aa"), ROW)  # type: ignore[arg-type]
    assert store.get("e", "bb") is None
    assert len(notes) == 1
    assert "encodings: cannot be written (Not a directory)" in notes[0]
    assert store.notes == notes


def test_full_disk_is_reported_once_and_leaves_no_partial_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    notes: list[str] = []
    store = EncodingStore(Budgets(1, 1, tmp_path), notes.append)
    monkeypatch.setattr(Path, "write_bytes", full)
    for key in ("aa", "bb"):
        store.put("e", key, ROW)
        assert torch.equal(store.get("e", key), ROW)  # type: ignore[arg-type]
    assert len(notes) == 1
    assert "No space left on device" in notes[0]
    assert entries(tmp_path) == []


def sized(number: int) -> Tensor:
    return torch.full((250,), float(number))  # 1,000 bytes, and some for the header


def test_oldest_entries_of_other_encoders_are_removed_first(tmp_path: Path) -> None:
    for place, encoder in enumerate(("old", "older")):
        store_in(tmp_path).put(encoder, "aa", sized(0))
        os.utime(tmp_path / encoder / "used", (1000 - place, 1000 - place))
    store = store_in(tmp_path, disk_bytes=2800)
    store.put("new", "aa", sized(1))
    assert {path.parts[-3] for path in entries(tmp_path)} == {"old", "new"}
    store.put("new", "bb", sized(2))
    assert {path.parts[-3] for path in entries(tmp_path)} == {"new"}


def test_nothing_is_written_beyond_the_budget_with_one_message(tmp_path: Path) -> None:
    notes: list[str] = []
    store = EncodingStore(Budgets(0, 2800 / GIB, tmp_path), notes.append)
    for key in ("aa", "bb", "cc", "dd"):
        store.put("e", key, sized(0))
    assert [path.name for path in entries(tmp_path)] == ["aa", "bb"]
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 2800
    assert len(notes) == 1
    assert "--cache-disk-gib are used up" in notes[0]


def test_without_a_disk_budget_no_folder_is_made(tmp_path: Path) -> None:
    store = EncodingStore(Budgets(1, 0, tmp_path / "encodings"))
    store.put("e", "aa", ROW)
    assert not (tmp_path / "encodings").exists()


def test_an_encoding_without_room_is_not_copied() -> None:
    store = EncodingStore(Budgets(memory_mib=100 / 2**20))
    first, second = torch.ones(20), torch.ones(20)
    assert store.put("encoder", "first", first).data_ptr() != first.data_ptr()
    assert store.put("encoder", "second", second).data_ptr() == second.data_ptr()
    assert store.get("encoder", "second") is None
    assert len(store) == 1


def test_what_a_store_has_of_another_is_counted_in_memory_and_on_disk(tmp_path: Path) -> None:
    other = EncodingStore(Budgets(folder=None))
    assert EncodingStore(Budgets(folder=tmp_path)).share_of(other) == 0  # there is nothing to have
    for key in "abcd":
        other.put("encoder", key, torch.zeros(2))
    EncodingStore(Budgets(folder=tmp_path)).put("encoder", "a", torch.zeros(2))
    store = EncodingStore(Budgets(folder=tmp_path))
    store.put("another encoder", "b", torch.zeros(2))
    assert store.share_of(other) == 0.25
    store.put("encoder", "c", torch.zeros(2))
    assert store.share_of(other) == 0.5
