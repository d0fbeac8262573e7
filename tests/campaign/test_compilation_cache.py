import os
import zlib

from popcosmos_hpc.campaign.compilation_cache import cache_folder, remove_damaged_entries


def test_entries_cut_short_are_removed(tmp_path):
    whole = zlib.compress(os.urandom(5000))
    contents = {"a-cache": whole, "b-cache": whole[:-40], "c-cache": b"", "d-cache": b"other", "e-atime": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert remove_damaged_entries(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".checked", "a-cache", "d-cache", "e-atime"]
    assert remove_damaged_entries(tmp_path / "absent") == 0


def test_old_entries_are_not_read_again(tmp_path):
    remove_damaged_entries(tmp_path)
    (tmp_path / "a-cache").write_bytes(b"x\x9c")
    os.utime(tmp_path / "a-cache", (1, 1))
    assert remove_damaged_entries(tmp_path) == 0


def test_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    assert str(cache_folder()) == "/somewhere"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(cache_folder()) == "/cache/popcosmos_hpc/xla"
