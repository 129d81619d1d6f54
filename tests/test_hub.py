"""Uploading exports to the Hub, with a fake Hub that records what it is sent."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from isogloss.cli import main
from isogloss.errors import ConfigError, RunError
from isogloss.export import hub


class Remembering:
    """A fake Hub that accepts everything."""

    def __init__(self):
        self.repositories, self.files = {}, {}

    def whoami(self):
        return {"name": "somebody"}

    def create_repo(self, name, *, private, exist_ok):
        self.repositories[name] = (private, exist_ok)

    def repo_info(self, name):
        return SimpleNamespace(private=name != "team/open")

    def create_commit(self, name, operations, *, commit_message):
        assert commit_message.startswith("isogloss ")
        for one in operations:
            content = one.path_or_fileobj
            found = content if isinstance(content, bytes) else Path(content).read_bytes()
            self.files[f"{name}/{one.path_in_repo}"] = found


@pytest.fixture
def remembering(monkeypatch):
    made = Remembering()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


@pytest.fixture
def exported(tmp_path):
    """A tuned model and an adapter for it, whose files contain both paths."""
    tuned, adapter = tmp_path / "run" / "tuned", tmp_path / "run" / "exports" / "sw"
    for folder in (tuned / "stage1_adapter", adapter):
        folder.mkdir(parents=True)
    (tuned / "config.json").write_text("{}")
    (tuned / "model.safetensors").write_bytes(b"\xff\x00weights")
    (tuned / "stage1_adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "demo"}')
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tuned)}))
    (adapter / "README.md").write_text(f"base {str(tuned)!r}, adapter {str(adapter)!r}\n")
    return tuned, adapter


def test_an_adapter_is_uploaded_with_its_model(remembering, exported):
    """Both repositories are private, and local paths in the uploaded files become repository names."""
    tuned, adapter = exported
    before = (adapter / "README.md").read_text()
    assert hub.push("team/aligned", tuned, {"sw": adapter}) == ["team/aligned-sw", "team/aligned"]
    assert remembering.repositories == {"team/aligned": (True, True), "team/aligned-sw": (True, True)}
    assert remembering.files == {
        "team/aligned/config.json": b"{}",
        "team/aligned/model.safetensors": b"\xff\x00weights",
        "team/aligned/stage1_adapter/adapter_config.json": b'{"base_model_name_or_path": "demo"}',
        "team/aligned-sw/adapter_config.json": b'{"base_model_name_or_path": "team/aligned"}',
        "team/aligned-sw/README.md": b"base 'team/aligned', adapter 'team/aligned-sw'\n",
    }
    assert (adapter / "README.md").read_text() == before


def test_a_standalone_export_is_uploaded_alone(remembering, exported):
    """A merged model or embedder has its language as a suffix; a bundle has the name itself."""
    _, folder = exported
    assert hub.push("team/aligned", None, {"sw": folder}) == ["team/aligned-sw"]
    assert hub.push("team/bundle", None, {"": folder}) == ["team/bundle"]


@pytest.mark.parametrize(
    "name", ["aligned", "team/", "/aligned", "team/a/b", "team/a b", "https://a/b", "tëam/a"]
)
def test_an_invalid_repository_name_is_refused(name, remembering):
    with pytest.raises(ConfigError) as caught:
        hub.check(name)
    assert str(caught.value) == f"--push-to-hub: {name!r} is not of the form OWNER/NAME"


@pytest.mark.parametrize("name", ["team/a--b", "team/a..b", f"team/{'a' * 92}"])
def test_a_name_that_the_hub_refuses_is_refused_before_the_export(name, remembering):
    """The longest one only exceeds the Hub's 96 characters with a language as its suffix."""
    with pytest.raises(ConfigError, match=r"^--push-to-hub: "):
        hub.check(name)


def test_nothing_is_uploaded_to_a_public_repository(remembering, exported):
    with pytest.raises(
        RunError, match=r"^--push-to-hub: team/open already exists and is public; choose another name$"
    ):
        hub.push("team/open", None, {"": exported[1]})
    assert not remembering.files


def test_an_unreachable_hub_is_a_one_line_error(monkeypatch):
    """The HTTP library's error is not an OSError."""

    class Unreachable:
        def whoami(self):
            raise HfHubHTTPError.__bases__[0]("Connection refused")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(RunError, match=r"^--push-to-hub: Connection refused; log in"):
        hub.check("team/aligned")


def test_the_command_refuses_an_invalid_name_before_the_export(aligned, capsys):
    """The error is one line, with exit code 2."""
    folder = aligned.run.folder
    with pytest.raises(SystemExit) as caught:
        main(["export", str(folder), "--all", "--push-to-hub", "aligned"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error --push-to-hub: 'aligned' is not of the form OWNER/NAME\n"
    assert not (folder / "exports").exists()


def test_a_missing_login_is_a_one_line_error(monkeypatch):

    class Unknown:
        def whoami(self):
            raise LocalTokenNotFoundError("No token here.\nRead on at length.")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unknown)
    with pytest.raises(RunError) as caught:
        hub.check("team/aligned")
    assert str(caught.value) == (
        "--push-to-hub: No token here.; log in with `hf auth login`, or leave it out"
    )


def test_a_notice_in_another_encoding_is_uploaded_as_it_is(remembering, exported):
    """Publishers write them in any encoding."""
    (exported[1] / "LICENSE.md").write_bytes("für alle".encode("latin-1"))
    hub.push("team/aligned", None, {"sw": exported[1]})
    assert remembering.files["team/aligned-sw/LICENSE.md"] == b"f\xfcr alle"
