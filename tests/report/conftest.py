"""The folder of a finished run in twelve languages, with computed values and hostile answers."""

import json
from pathlib import Path
from typing import Any

import pytest

CODES = ("ar", "bg", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi")
FAMILIES = {
    "afro-asiatic": ("ar",),
    "indo-european": ("bg", "el", "es", "fr", "hi", "ru", "ur"),
    "atlantic-congo": ("sw",),
    "other": ("th", "tr", "vi"),
}
QUESTIONS = {  # Where did Maria buy bread?
    "en": "Where did Maria buy bread?",
    "ar": "أين اشترت ماريا خبزًا؟",
    "bg": "Къде Мария купи хляб?",
    "el": "Πού αγόρασε ψωμί η Μαρία;",
    "es": "¿Dónde compró pan María?",
    "fr": "Où Maria a-t-elle acheté du pain ?",
    "hi": "मारिया ने रोटी कहाँ खरीदी?",
    "ru": "Где Мария купила хлеб?",
    "sw": "Maria alinunua mkate wapi?",
    "th": "มาเรียซื้อขนมปังที่ไหน",
    "tr": "Maria ekmeği nereden aldı?",
    "ur": "ماریا نے روٹی کہاں سے خریدی؟",
    "vi": "Maria mua bánh mì ở đâu?",
}
ANSWERS = {  # At the market.
    "en": "At the market.",
    "ar": "في السوق.",
    "bg": "На пазара.",
    "el": "Στην αγορά.",
    "es": "En el mercado.",
    "fr": "Au marché.",
    "hi": "बाज़ार में।",
    "ru": "На рынке.",
    "sw": "Sokoni.",
    "th": "ที่ตลาด",
    "tr": "Pazardan.",
    "ur": "بازار سے۔",
    "vi": "Ở chợ.",
}
HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(2)>",
    "\u202egnorw si siht <b>",
    "\x00\x1b[31m\ud800 {{ 7 * 7 }} {% raw %}",
    '" onmouseover="alert(3)" x="',
    "<a href='https://example.org/steal'>" + "long " * 400,
)
TASKS = ("question", "entailment", "title")
ALIGNMENT = {  # before, after
    **{"ar": (0.402, 0.611), "bg": (0.455, 0.668), "el": (0.447, 0.64), "es": (0.587, 0.743)},
    **{"fr": (0.601, 0.752), "hi": (0.381, 0.58), "ru": (0.528, 0.716), "sw": (0.212, 0.497)},
    **{"th": (0.318, 0.541), "tr": (0.39, 0.602), "ur": (0.295, 0.528), "vi": (0.436, 0.651)},
}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")  # ASCII only: keeps a lone surrogate


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_scores(*suites: str) -> dict[str, Any]:
    return {"schema": 1, "isogloss": "0.1.0", "suites": {suite: make_suite(suite) for suite in suites}}


def make_suite(name: str) -> dict[str, Any]:
    def measure(phase: int, shift: float) -> dict[str, Any]:
        values = {code: round(min(1.0, pair[phase] + shift), 4) for code, pair in ALIGNMENT.items()}
        mean = round(sum(values.values()) / len(values), 4)
        cells = {
            code: {"value": v, "low": round(v - 0.031, 4), "high": round(min(1.0, v + 0.03), 4), "n": 400}
            for code, v in values.items()
        }
        return {"mean": mean, "low": mean - 0.012, "high": min(1.0, mean + 0.012), "languages": cells}

    def phase(at: int) -> dict[str, Any]:
        shifts = {"alignment": 0.0, "consistency": -0.09, "retrieval": 0.09, "retrieval_strict": -0.02}
        shifts |= {"retrieval_margin": 0.12, "accuracy": -0.05, "fidelity": 0.25}
        found = {name: measure(at, shift) for name, shift in shifts.items()}
        value = {"value": -0.004 * at, "low": -0.011 * at, "high": 0.003 * at, "n": 400}
        found["retention"] = {"mean": value["value"], **value, "languages": {"en": value}}
        return found

    return {
        "signature": f"suite:{name}|split:test|n:400|scoring:map|seed:0|boot:1000|model:3f9a2c|v:0.1.0",
        "languages": list(CODES),
        "before": phase(0),
        "after": phase(1),
        "spread": {
            "before": {"alignment": {"worst": ["sw", 0.212], "sd": 0.113}},
            "after": {"alignment": {"worst": ["sw", 0.497], "sd": 0.081}},
        },
        "tasks": {
            side: {
                task: {code: round(min(1, ALIGNMENT[code][at] + 0.07 * k - 0.05), 4) for code in CODES}
                for k, task in enumerate(TASKS)
            }
            for at, side in enumerate(("before", "after"))
        },
        "notes": ["Thai is split by characters, since it writes no spaces.", "<em>notes</em> are text"],
        "english": {"accuracy": 0.873},
        "layer": 3,
    }


def make_predictions(at: int) -> list[dict[str, Any]]:
    rows = []
    for c, code in enumerate(CODES):
        for index in range(9):
            good = (index * 7 + c * 5) % 9 < (6 if at else 2) + (index + at) % 2
            good = good if index or c % 4 else not at  # a few are lost
            hostile = HOSTILE[(index + c) % len(HOSTILE)] if index in {2, 5} else ""
            rows.append(
                {
                    "id": f"{TASKS[index % 3]}-{index:03d}",
                    "task": TASKS[index % 3],
                    "language": code,
                    "instruction": QUESTIONS[code],
                    "english_instruction": QUESTIONS["en"],
                    "reference": ANSWERS[code],
                    "english_answer": ANSWERS["en"],
                    "answer": ANSWERS[code] if good else hostile,
                    "consistent": good,
                    "correct": good,
                    "in_language": good,
                }
            )
    return rows


def make_tree() -> dict[str, Any]:
    nodes: list[dict[str, Any]] = []  # leaves first: the order of the file must not matter
    for family, codes in FAMILIES.items():
        for code in codes:
            nodes.append(
                {
                    **{"name": code, "level": "language", "parent": family, "rank": 4, "languages": [code]},
                    **{"text": f"Notes on {code}.\nSecond line </pre><script>x</script>", "items": 400},
                }
            )
        nodes.append(
            {
                **{"name": family, "level": "family", "parent": "root", "rank": 4, "languages": list(codes)},
                **{"text": "What these languages share: word order, politeness.", "items": 400 * len(codes)},
            }
        )
    text = "Answer as you would in English, in the language of the instruction."
    root = {"name": "root", "level": "root", "parent": None, "rank": 8, "languages": list(CODES)}
    return {"nodes": [*nodes, {**root, "text": text, "items": 4800}]}


def make_curves() -> list[dict[str, Any]]:
    tune = [{"stage": "tune", "step": s, "loss": 5.2 / (1 + s / 60) + 0.4, "lr": 1e-4} for s in range(1, 501)]
    distill = [
        {
            **{"stage": "distill", "step": s, "loss": 3 / (1 + s / 30) + 0.3 + 0.05 * (s % 7)},
            **{"kl": 1.4 / (1 + s / 30), "ce": 1.2 / (1 + s / 40) + 0.3, "similarity": 2.1 / (1 + s / 90)},
        }
        for s in range(1, 301, 3)
    ]
    return [*tune, *distill]


LEDGER = {
    "schema": 1,
    "stages": [
        {
            **{"stage": "tune", "tokens_forwarded": 4_200_000, "tokens_backpropagated": 1_300_000},
            **{"tokens_generated": 0, "flops": 2.31e14, "seconds": 261.4, "peak_memory_bytes": 1_610_612_736},
            **{"teacher_calls": 0, "energy_joules": 16_000.0},
        },
        {
            **{"stage": "distill", "tokens_forwarded": 12_345_678, "tokens_backpropagated": 5_000_000},
            **{
                "tokens_generated": 8_400,
                "flops": 6.9e14,
                "seconds": 985,
                "peak_memory_bytes": 2_254_857_830,
            },
            **{"teacher_calls": 3296, "energy_joules": 60_800.0},
        },
    ],
}


def make_run(folder: Path, *suites: str) -> Path:
    (folder / "predictions").mkdir(parents=True)
    write_json(folder / "scores.json", make_scores(*suites))
    write_json(folder / "ledger.json", LEDGER)
    write_json(folder / "tree.json", make_tree())
    write_lines(folder / "curves.jsonl", make_curves())
    for suite in suites:
        write_lines(folder / f"predictions/{suite}.before.jsonl", make_predictions(0))
        write_lines(folder / f"predictions/{suite}.after.jsonl", make_predictions(1))
    config = "base: demo\nlanguages: [sw, ur]\nteacher: {server: 'https://localhost:8000/v1', x: '</pre>'}\n"
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a complete run with one suite, the demo."""
    return make_run(tmp_path / "english-to-twelve", "demo")
