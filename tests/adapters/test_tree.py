"""The adapter tree of the twelve XGLUE languages, and the path of each language."""

import pytest

from isogloss.adapters.tree import Node, build_tree
from isogloss.errors import ConfigError
from isogloss.languages import XGLUE_TWELVE

RANKS = {"root": 8, "family": 4, "language": 4}
SLAVIC = "Indo-European/Balto-Slavic/Slavic"
ROMANCE = "Indo-European/Italic/Romance"
INDO_ARYAN = "Indo-European/Indo-Iranian/Indo-Aryan"
FAMILIES = {
    "Afro-Asiatic/Semitic/Central Semitic": ("ar",),
    SLAVIC: ("bg", "ru"),
    "Indo-European/Graeco-Phrygian/Greek": ("el",),
    ROMANCE: ("es", "fr"),
    INDO_ARYAN: ("hi", "ur"),
    "Atlantic-Congo/Benue-Congo/Narrow Bantu": ("sw",),
    "Tai-Kadai/Kam-Tai": ("th",),
    "Turkic/Common Turkic/Oghuz": ("tr",),
    "Austroasiatic/Vietic": ("vi",),
}


@pytest.fixture
def tree():
    return build_tree(XGLUE_TWELVE, ranks=RANKS)


def names(path):
    return [node.name for node in path]


def test_the_families_of_the_twelve_are_glottologs(tree):
    """Russian and Bulgarian, Spanish and French, Hindi and Urdu share a family; the others have their own."""
    assert {n.name: n.languages for n in tree.nodes if n.level == "family"} == FAMILIES


def test_the_twelve_have_a_root_nine_families_and_twelve_leaves(tree):
    """8 rows in the root, 4 in each of the 21 others: 92."""
    assert [n.level for n in tree.nodes] == ["root"] + ["family"] * 9 + ["language"] * 12
    assert tree.rank == 92
    assert tree.languages == ("ar", "bg", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi")


@pytest.mark.parametrize("shape", ["families", "flat", "shared"])
def test_rows_are_disjoint_and_cover_the_adapter(shape):
    """Every row belongs to one node, in the order of the nodes."""
    tree = build_tree(XGLUE_TWELVE, families=shape, ranks=RANKS)
    assert [row for node in tree.nodes for row in node.rows] == list(range(tree.rank))


def test_a_path_goes_from_root_to_leaf(tree):
    """Russian uses the rows of the root, of Slavic and its own."""
    assert names(tree.path("ru")) == ["root", SLAVIC, "ru"]
    assert [list(node.rows) for node in tree.path("ru")] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [12, 13, 14, 15],
        [68, 69, 70, 71],
    ]


@pytest.mark.parametrize(
    ("language", "path"),
    [
        ("pt", ["root", ROMANCE]),
        ("uk", ["root", SLAVIC]),
        ("bn", ["root", INDO_ARYAN]),
        ("ja", ["root"]),
        ("de", ["root"]),
        ("no-such-language", ["root"]),
        ("en", ["root"]),
    ],
)
def test_a_language_without_a_leaf_goes_as_far_as_its_family(tree, language, path):
    """Portuguese uses the root and Romance; Japanese, and English as the source language, only the root."""
    assert names(tree.path(language)) == path


def test_english_uses_only_the_root_beside_another_germanic_language():
    """The Germanic node is not on the path of English, which is the source language."""
    tree = build_tree(("de", "sw"), ranks=RANKS)
    assert names(tree.path("de")) == ["root", "Indo-European/Germanic/West Germanic", "de"]
    assert names(tree.path("en")) == ["root"]


@pytest.mark.parametrize(("shape", "rank"), [("families", 92), ("flat", 192), ("shared", 16)])
def test_every_shape_gives_a_language_the_same_rank(shape, rank):
    """Every path has 16 rows."""
    tree = build_tree(XGLUE_TWELVE, families=shape, ranks=RANKS)
    assert tree.path_rank() == 16
    assert {sum(n.rank for n in tree.path(code)) for code in XGLUE_TWELVE} == {16}
    assert tree.rank == rank


def test_flat_languages_share_no_rows_and_shared_ones_all_rows():
    """The two controls are the extremes of a tree."""
    rows = {}
    for shape in ("flat", "shared"):
        tree = build_tree(("es", "fr"), families=shape, ranks=RANKS)
        rows[shape] = [{r for n in tree.path(code) for r in n.rows} for code in ("es", "fr")]
    assert rows["flat"][0].isdisjoint(rows["flat"][1])
    assert rows["shared"][0] == rows["shared"][1] == set(range(16))


def test_families_can_be_named_by_the_caller():
    """This allows random trees of the same shape, the control for the value of real families."""
    tree = build_tree(("es", "fr", "sw"), families={"es": "A", "fr": "B", "sw": "A"}, ranks=RANKS)
    assert tree.by_name["A"] == Node("A", "family", "root", ("es", "sw"), 4, 8)
    assert names(tree.path("fr")) == ["root", "B", "fr"]


def test_a_language_named_twice_is_refused():
    """Two leaves of one name would share a path and waste rows."""
    with pytest.raises(ConfigError) as caught:
        build_tree(("es", "fr", "es"), ranks=RANKS)
    assert str(caught.value) == "a target language is listed twice; list each once"
