"""All eleven XGLUE tasks in the official layout, with two languages and two rows each."""

import json
from pathlib import Path

MLQA = "MLQA/MLQA_V1/dev/dev-context-{0}-question-{0}.json"


def squad(*rows: tuple[str, str, str, str]) -> str:
    """Return questions (id, context, question, answer) in SQuAD's layout."""
    paragraphs = [
        {
            "context": context,
            "qas": [{"id": id, "question": asked, "answers": [{"text": answer, "answer_start": 0}]}],
        }
        for id, context, asked, answer in rows
    ]
    return json.dumps({"version": 1.0, "data": [{"title": "", "paragraphs": paragraphs}]})


FILES = {
    "NER/en.dev": "-DOCSTART- O\n\nAnna I-PER\nsings O\n\nNew I-LOC\nYork I-LOC\nis O\nbig O\n",
    "NER/es.dev": "Ana B-PER\ncanta O\n\nLima B-LOC\nbrilla O\n",
    "POS/en.dev": "Anna PROPN\nsings VERB\n\nBig ADJ\ncats NOUN\nrun VERB\n",
    "POS/es.dev": "Ana\tPROPN\ncanta\tVERB\n\ngatos\tNOUN\ncorren\tVERB\n",
    "NC/xglue.nc.en.dev": "Cup won\tThey won.\tsports\n\tNo title.\tautos\n",
    "NC/xglue.nc.es.dev": "Copa\tGanaron.\tsports\nRuta\tUn viaje.\ttravel\n",
    MLQA.format("en"): squad(
        ("q1", "The cat sat.", "Who sat?", "The cat"), ("q2", "It rained.", "What?", "rained"),
    ),
    MLQA.format("es"): squad(
        ("q2", "Ha llovido.", "¿Qué?", "llovido"), ("q1", "El gato durmió.", "¿Quién?", "El gato"),
    ),
    "XNLI/en.dev": "He ate.\tHe is full.\tneutral\nHe ate.\tHe did not eat.\tcontradictory\n",
    "XNLI/es.dev": "Comió.\tEstá lleno.\tneutral\nComió.\tNo comió.\tcontradiction\n",
    "PAWSX/en/dev_2k.tsv": "id\tsentence1\tsentence2\tlabel\n1\tA b\tb A\t1\n2\tC\tD\t0\n",
    "PAWSX/es/dev_2k.tsv": "id\tsentence1\tsentence2\tlabel\n1\ta b\tb a\t1\n2\tc\td\t1\n",
    "QADSM/xglue.qadsm.en.dev": "shoes\tShoe shop\tCheap\tGood\nshoes\tCars\tFast\tBad\n",
    "QADSM/xglue.qadsm.fr.dev": "chaussures\tMagasin\tPas cher\tGood\nvélo\tAutos\t\tBad\n",
    "WPR/xglue.wpr.en.dev": "cats\tCats\tAll\t4\ncats\tDogs\tNone\t0\nalone\tX\tY\t2\n",
    "WPR/xglue.wpr.es.dev": "gatos\tPerros\tNada\t1\ngatos\tGatos\tTodo\t3\n",
    "QAM/xglue.qam.en.dev": "Who?\tAnna.\t1\nWho?\tIt rains.\t0\n",
    "QAM/xglue.qam.fr.dev": "Qui ?\tAnna.\tTrue\nQui ?\tIl pleut.\tFalse\n",
    "QG/xglue.qg.en.src.dev": "Anna won the cup.\nIt rains.\n",
    "QG/xglue.qg.en.tgt.dev": "who won the cup ?\nwhat is the weather like ?\n",
    "QG/xglue.qg.es.src.dev": "Ana ganó la copa.\nLlueve.\n",
    "QG/xglue.qg.es.tgt.dev": "¿ quién ganó la copa ?\n¿ qué tiempo hace hoy ?\n",
    "NTG/xglue.ntg.en.src.dev": "A long story.\nAnother one.\n",
    "NTG/xglue.ntg.en.tgt.dev": "A headline of five words\nA second headline for it\n",
    "NTG/xglue.ntg.es.src.dev": "Una historia.\nOtra.\n",
    "NTG/xglue.ntg.es.tgt.dev": "Un titular de cinco palabras\nUn segundo titular para ella\n",
}  # fmt: skip


def put(folder: Path, **changed: str) -> Path:
    """Write the files under xglue_full_dataset; `changed` replaces some, with __ for / in their names."""
    for name, text in (FILES | {key.replace("__", "/"): text for key, text in changed.items()}).items():
        path = folder / "xglue_full_dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
