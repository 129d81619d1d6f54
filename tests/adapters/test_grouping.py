"""Tree shapes: language families from a file, and random ones."""

from collections import Counter

import pytest

from isogloss.adapters.grouping import families_of_file, random_families
from isogloss.adapters.tree import build_tree
from isogloss.errors import ConfigError
from isogloss.languages import XGLUE_TWELVE

RANKS = {"root": 2, "family": 1, "language": 1}


def test_a_file_names_the_families(tmp_path):
    """Any code of a language is accepted; languages that are not trained may be listed."""
    file = tmp_path / "tree.yaml"
    file.write_text("west: [es, fra_Latn, de]\neast: [ru, sw]\n")
    found = families_of_file(file, ["es", "fr", "ru"])
    assert found == {"es": "west", "fr": "west", "ru": "east"}
    tree = build_tree(["es", "fr", "ru"], families=found, ranks=RANKS)
    assert [node.name for node in tree.path("fr")] == ["root", "west", "fr"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("west: [es]\n", "fr is in no family; available: es"),
        ("west: [es, fr]\neast: [spa]\n", "es is in west and in east; name it once"),
        ("west: [es, xq]\n", "west: 'xq' is not a known language code"),
        ("- es\n", "a tree is `family: [codes]`, one line for each family"),
        ("west: es\n", "a tree is `family: [codes]`, one line for each family"),
        ("west: [es\n", "not YAML: "),
    ],
)
def test_an_invalid_tree_file_is_refused(text, says, tmp_path):
    """The message is one line that starts with the file's name."""
    file = tmp_path / "tree.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        families_of_file(file, ["es", "fr"])
    assert str(caught.value).startswith(f"{file}: ") and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_norwegian_is_a_language_in_a_tree_file(tmp_path):
    """YAML 1.1 would read it as false."""
    (path := tmp_path / "tree.yaml").write_text("north: [no, sv]")
    assert families_of_file(path, ["nb", "sv"]) == {"nb": "north", "sv": "north"}


def test_random_families_have_glottologs_sizes():
    """Three pairs and six single languages; the same seed gives the same families."""
    found = random_families(XGLUE_TWELVE, 3)
    assert sorted(Counter(found.values()).values()) == [1, 1, 1, 1, 1, 1, 2, 2, 2]
    assert tuple(found) == XGLUE_TWELVE
    assert random_families(XGLUE_TWELVE, 3) == found != random_families(XGLUE_TWELVE, 4)
