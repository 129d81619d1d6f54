"""Files of a run: written completely or not at all, by one process at a time, and named in errors."""

import ast
import errno
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from isogloss import files
from isogloss.errors import RunError

PACKAGE = Path(files.__file__).parent
HOLD = """
import sys
from pathlib import Path
from isogloss.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    """A full disk or an interrupt leaves the old text, and no draft."""
    path = tmp_path / "below" / "a.json"
    files.write_text(path, "old")
    for stop in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(stop)), files.replacing(path) as draft:
            draft.write_text("half")
            raise stop
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_full_disk_is_reported_with_its_path(tmp_path):
    """The system gives no path when a write fails, and neither does safetensors."""
    with pytest.raises(OSError) as caught, files.naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.filename, caught.value.errno) == (str(tmp_path / "a"), errno.ENOSPC)
    with pytest.raises(RunError) as refused, files.naming(tmp_path / "b"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert str(refused.value) == (
        f"{tmp_path}/b could not be written: I/O error: No space left on device (os error 28)"
    )
    with pytest.raises(OSError) as named, files.naming(tmp_path / "c"):
        (tmp_path / "gone" / "d").read_text()
    assert named.value.filename == str(tmp_path / "gone" / "d")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; mend it"),
        (b"{", "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        (b'{"a": "\xff"}', "is not JSON ('utf-8' codec can't decode byte 0xff in position 7"),
        (b"[]", "has no suites; mend it"),
        (b'{"a": 1}', "has no suites; mend it"),
    ],
)
def test_a_damaged_state_file_is_named(content, says, tmp_path):
    """The error also says what to do."""
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        files.read_json(path, "suites", "mend it")
    assert str(caught.value).startswith(f"{path} {says}") and str(caught.value).endswith("; mend it")


def test_a_damaged_line_is_named(tmp_path):
    """The error has its number; a Unicode line separator inside a string does not end a line."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028y"}\n\n{"a": 2}\n', "utf-8")
    assert files.read_lines(path, "mend it") == [{"a": "x\u2028y"}, {"a": 2}]
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(RunError) as caught:
        files.read_lines(path, "mend it")
    assert str(caught.value) == f"{path}:2 is not a JSON object; mend it"


def test_two_processes_cannot_write_to_the_same_run(tmp_path):
    """The error names the process that holds the lock; killing that process releases it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError) as caught, files.locked(tmp_path):
            pass
        holder.kill()
    begin, end = str(caught.value).split(f"process {holder.pid} on ")
    assert begin == f"{tmp_path} is being written to by "
    assert end.endswith("; wait for it to finish, or use another run folder")
    with files.locked(tmp_path), files.locked(tmp_path):  # its holder may take it again
        pass


def test_the_content_hash_depends_on_names_and_bytes(tmp_path):
    """The folder and the order of files do not matter."""
    for folder, names in (("a", "xy"), ("b", "yx")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(name)
    first, second = (files.content_hash((tmp_path / folder).iterdir()) for folder in "ab")
    assert first == second and len(first) == 12
    (tmp_path / "b" / "x").write_text("z")
    assert files.content_hash((tmp_path / "b").iterdir()) != first


def test_every_text_file_is_opened_as_utf8():
    """The system's own encoding does not matter; files in /proc are exempt, as they are ASCII."""
    found = []
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            before = {"read_text": 0, "write_text": 1, "open": 0}.get(node.func.attr)
            given = [ast.unparse(one) for one in (*node.args, *(word.value for word in node.keywords))]
            of = ast.unparse(node.func.value)
            if before is None or of in ("os", "tarfile", "archive") or "/proc/" in of:
                continue
            if "'utf-8'" not in given[before:] and not any(mode in given for mode in ("'rb'", "'wb'")):
                found.append(f"{module.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
