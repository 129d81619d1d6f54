"""The search for RL settings: it resumes where it stopped, and reports settings at an edge."""

import math

import pytest

pytest.importorskip("trl", reason="the baselines need the extra isogloss[rl]")

from experiments import rl_search


@pytest.fixture
def search():
    return rl_search


def walk(search, method, rows, best, stop=100):
    """Append rows of the untried candidates, the better the nearer they are to `best`."""
    for settings in search.untried(method, 60.0, rows):
        if not stop:
            break
        far = sum(abs(math.log((settings[name] + 0.01) / (value + 0.01))) for name, value in best.items())
        rows.append({"method": method, "limit_s": 60.0, "settings": settings, "alignment": -far})
        stop -= 1
    return rows


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 8])
def test_a_stopped_search_resumes_with_the_remaining_candidates(search, stop):
    """In the same order, whatever later rounds have found by then."""
    best = {"learning_rate": 3e-3, "beta": 0.04, "num_generations": 8, "temperature": 1.3}
    whole = walk(search, "grpo", [], best)
    assert len(whole) == 3 + 4 + 2
    assert whole[-1]["settings"] == best | {"steps_per_generation": 4}
    assert walk(search, "grpo", walk(search, "grpo", [], best, stop), best) == whole
    assert list(search.untried("grpo", 60.0, whole)) == []
    assert next(search.untried("grpo", 240.0, whole)) == search.START["grpo"]  # rows have another limit


@pytest.mark.parametrize(
    ("method", "best"),
    [
        ("grpo", {"learning_rate": 3e-3, "beta": 0.04, "num_generations": 8, "temperature": 1.0}),
        ("dpo", {"learning_rate": 2e-3, "beta": 0.1}),
        ("sft-grpo", {"learning_rate": 1e-4, "beta": 0.04, "temperature": 1.0}),
    ],
)
def test_the_settings_in_use_are_inside_the_search_range(search, method, best):
    """The settings of `experiments/methods.py`; a better one at an edge is reported."""
    used = {"grpo": search.methods.GRPO, "dpo": search.methods.DPO, "sft-grpo": search.methods.BEHIND_SFT}
    assert used[method] | best == used[method]
    assert search.edges(method, 60.0, walk(search, method, [], best)) == []
    tried = {"grpo": "0.001 to 0.01", "dpo": "0.0005 to 0.005", "sft-grpo": "3e-05 to 0.001"}[method]
    low = walk(search, method, [], best | {"learning_rate": 1e-9})
    assert search.edges(method, 60.0, low) == [
        f"{method}: learning_rate {tried.split()[0]} is at the edge of {tried}"
    ]
