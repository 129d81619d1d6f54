"""Comparing two runs: differences worked out by hand, and runs that cannot be compared."""

import json
from pathlib import Path

import pytest
from scipy import stats

from isogloss.cli import main
from isogloss.errors import RunError
from isogloss.evaluate.compare import compare, compare_groups

SIGNATURE = "suite:demo|rev:1|split:test|items:4|sentences:2|scoring:generation|seed:{seed}"


def written(
    folder: Path,
    hits: dict,
    *,
    seed: int = 0,
    items=("a", "b", "c", "d"),
    signature=SIGNATURE,
    data=None,
    ids=None,
    languages=("sw", "ur"),
) -> Path:
    """Write the files of a run's folder that a comparison reads."""
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.yaml").touch()
    scores = {
        "schema": 1,
        "suites": {"demo": {"signature": signature.format(seed=seed), "languages": languages}},
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    text = json.dumps({"items": items, "hits": hits, "ids": ids or {}} | ({"data": data} if data else {}))
    (folder / "predictions" / "demo.after.hits.json").write_text(text)
    return folder


def test_differences_match_those_worked_out_by_hand(tmp_path):
    """Consistency: Swahili +½, Urdu +¼. Retrieval: Swahili −½, Urdu 0."""
    a = written(
        tmp_path / "a",
        {"consistency": {"sw": [1, 1, 0, 1], "ur": [1, 0, 0, 0]}, "retrieval": {"sw": [0, 0], "ur": [1, 1]}},
        seed=1,
    )
    b = written(
        tmp_path / "b",
        {"consistency": {"sw": [0, 1, 0, 0], "ur": [0, 0, 0, 0]}, "retrieval": {"sw": [1, 0], "ur": [1, 1]}},
        seed=2,
    )
    found = {one.measure: one for one in compare(a, b)}
    assert set(found) == {"alignment", "consistency", "retrieval"}
    values = {m: ({c: d.value for c, d in one.languages.items()}, one.mean.value) for m, one in found.items()}
    assert values == {
        "alignment": ({"sw": 0.0, "ur": 0.125}, 0.0625),
        "consistency": ({"sw": 0.5, "ur": 0.25}, 0.375),
        "retrieval": ({"sw": -0.5, "ur": 0.0}, -0.25),
    }
    assert (found["consistency"].mean.n, found["alignment"].mean.n) == (4, 2)
    assert found["retrieval"].languages["ur"].p == 1.0


def test_fidelity_is_only_compared_among_the_same_candidates(tmp_path):
    """An answer in Portuguese is found out only if Portuguese was measured."""
    hits = {"consistency": {"sw": [1, 1, 0, 1]}, "fidelity": {"sw": [1, 1, 1, 1]}}
    runs = [written(tmp_path / str(n), hits, languages=("sw", "pt")[: 2 - n // 2]) for n in range(3)]
    assert [one.measure for one in compare(*runs[:2])] == ["consistency", "fidelity"]
    assert [one.measure for one in compare(*runs[1:])] == ["consistency"]


def test_p_is_close_to_a_t_test_and_corrected_for_the_number_of_languages(tmp_path):
    """With many items the bootstrap's p is that of the paired t-test; with two languages it is doubled."""
    first, second = [1] * 50 + [0] * 550, [0] * 50 + [1] * 30 + [0] * 520
    ids = [str(number) for number in range(600)]
    a = written(tmp_path / "a", {"accuracy": {"sw": first, "ur": first}}, items=ids)
    b = written(tmp_path / "b", {"accuracy": {"sw": second, "ur": first}}, items=ids)
    (found,) = compare(a, b)
    expected = stats.ttest_rel(first, second).pvalue
    assert found.languages["sw"].p == pytest.approx(2 * expected, rel=0.25)
    assert found.languages["ur"].p == 1.0


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"items": ("a", "b", "c", "e")}, "demo has different items in {a} and {b}; "),
        (
            {"signature": SIGNATURE.replace("test", "dev")},
            "demo was measured differently: split is test in {a} and dev in {b}; "
            "evaluate both with the same settings",
        ),
    ],
)
def test_runs_on_different_items_are_refused(other, says, tmp_path):
    """Their difference would mean nothing."""
    hits = {"accuracy": {"sw": [1, 1, 0, 1]}}
    a, b = written(tmp_path / "a", hits), written(tmp_path / "b", hits, **other)
    with pytest.raises(RunError) as caught:
        compare(a, b)
    assert str(caught.value).startswith(says.format(a=a, b=b))


def test_runs_with_different_scoring_are_refused(tmp_path):
    """Between likelihood and generation, p would measure the scoring."""
    hits = {"accuracy": {"sw": [1, 1, 0, 1]}}
    a = written(tmp_path / "a", hits)
    b = written(tmp_path / "b", hits, signature=SIGNATURE.replace("generation", "likelihood"))
    with pytest.raises(RunError) as caught:
        compare(a, b)
    assert str(caught.value) == (
        f"demo was measured differently: scoring is generation in {a} and likelihood in {b}; "
        "evaluate both with the same settings"
    )


def test_runs_with_different_texts_in_a_shared_language_are_refused(tmp_path):
    """Equal IDs are not enough; a language that only one run has does not matter."""
    hits = {"accuracy": {"sw": [1, 1, 0, 1]}}
    a = written(tmp_path / "a", hits, data={"en": "1", "sw": "2", "ur": "3"})
    b = written(tmp_path / "b", hits, data={"en": "1", "sw": "2", "hi": "4"})
    c = written(tmp_path / "c", hits, data={"en": "1", "sw": "5"})
    assert compare(a, b)[0].mean.value == 0.0
    with pytest.raises(RunError) as caught:
        compare(a, c)
    assert str(caught.value) == (
        f"demo has different sw texts in {a} and {c}; evaluate both on the same data"
    )


def test_damaged_scores_are_named(tmp_path):
    """A full disk may leave an empty file."""
    a, b = (written(tmp_path / name, {"accuracy": {"sw": [1, 1, 0, 1]}}) for name in "ab")
    (b / "predictions" / "demo.after.hits.json").write_bytes(b"")
    hits = b / "predictions" / "demo.after.hits.json"
    with pytest.raises(RunError, match=rf"^{hits} is empty; remove scores.json and run "):
        compare(a, b)
    (b / "scores.json").write_bytes(b"")
    with pytest.raises(RunError, match=rf"^{b}/scores.json is empty; remove it and run "):
        compare(a, b)


def test_a_run_without_scores_is_refused(tmp_path):
    """The error names the command to run."""
    a = written(tmp_path / "a", {})
    (tmp_path / "b").mkdir()
    with pytest.raises(RunError) as caught:
        compare(a, tmp_path / "b")
    assert str(caught.value) == f"{tmp_path}/b has no scores.json; run `isogloss evaluate` first"


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    """The mean comes first, then each language."""
    hits = {"accuracy": {"sw": [1, 1, 0, 1]}}
    a, b = written(tmp_path / "a", hits), written(tmp_path / "b", {"accuracy": {"sw": [0, 1, 0, 1]}})
    with pytest.raises(SystemExit):
        main(["compare", str(a), str(b)])
    lines = capsys.readouterr().out.split("\n")
    assert lines[2].split()[:3] == ["accuracy", "mean", "+25.0"] and lines[3].split()[:2] == ["sw", "+25.0"]
    with pytest.raises(SystemExit):
        main(["compare", str(a), str(b), "--json"])
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["measure"], entry["languages"]["sw"]["value"]) == ("accuracy", 0.25)


def test_languages_with_different_items_are_compared_item_by_item(tmp_path):
    """Swahili gains ½ on four items, Urdu loses 1 on two of them: the mean is −¼."""
    ids = {"accuracy": {"sw": ["t/a", "t/b", "t/c", "t/d"], "ur": ["t/c", "t/d"]}}
    a = written(tmp_path / "a", {"accuracy": {"sw": [1, 1, 0, 1], "ur": [0, 0]}}, ids=ids)
    b = written(tmp_path / "b", {"accuracy": {"sw": [0, 1, 0, 0], "ur": [1, 1]}}, ids=ids)
    (found,) = compare(a, b)
    assert found.mean.value == -0.25 and found.mean.n == 4
    assert {code: one.value for code, one in found.languages.items()} == {"sw": 0.5, "ur": -1.0}


def test_seeds_of_a_group_are_averaged_item_by_item(tmp_path):
    """With two seeds each, Swahili's items score 1, ½, 0, ½ against 0, ½, 0, 0; `codes` leaves out Urdu."""
    ours = [
        written(tmp_path / "a0", {"accuracy": {"sw": [1, 1, 0, 1], "ur": [0, 0, 0, 0]}}, seed=0),
        written(tmp_path / "a1", {"accuracy": {"sw": [1, 0, 0, 0], "ur": [0, 0, 0, 0]}}, seed=1),
    ]
    theirs = [
        written(tmp_path / "b0", {"accuracy": {"sw": [0, 1, 0, 0], "ur": [1, 1, 1, 1]}}, seed=0),
        written(tmp_path / "b1", {"accuracy": {"sw": [0, 0, 0, 0], "ur": [1, 1, 1, 1]}}, seed=1),
    ]
    (found,) = compare_groups(ours, theirs, codes=["sw"])
    assert (found.mean.value, found.mean.n, list(found.languages)) == (0.375, 4, ["sw"])
    both = compare_groups(ours, theirs)[0]
    assert both.languages["ur"].value == -1.0


def test_a_group_with_one_run_on_different_items_is_refused(tmp_path):
    hits = {"accuracy": {"sw": [1, 1, 0, 1]}}
    a, b, c = (
        written(tmp_path / name, hits, items=tuple(items))
        for name, items in (("a", "abcd"), ("b", "abcd"), ("c", "abce"))
    )
    with pytest.raises(RunError, match=f"^demo has different items in {a} and {c}; "):
        compare_groups([a], [b, c])
