"""The demo's grammar: language-independent meanings and their wording in fifteen languages.

A phrase file stores whole phrases, so word order, agreement and case are data that a speaker can read and
correct; this module only picks forms and fills templates. It does not depend on tasks, models or splits.
"""

import itertools
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from string import Formatter

import yaml

LANGUAGES = ("en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")


@dataclass(frozen=True)
class Event:
    """Somebody did something somewhere at some time, or did not."""

    person: str
    action: str
    place: str
    time: str
    denied: bool = False

    @property
    def topic(self) -> str:
        return topic_of_action()[self.action]

    def affirmed(self) -> "Event":
        return replace(self, denied=False)


@dataclass(frozen=True)
class Opinion:
    """A thing had a quality."""

    thing: str
    quality: str

    @property
    def sentiment(self) -> str:
        return next(s for s, qualities in meanings()["sentiments"].items() if self.quality in qualities)


@cache
def meanings() -> dict:
    """Return everything that sentences can be about, from meanings.yaml."""
    return yaml.safe_load(resources.files("isogloss.data.demo").joinpath("meanings.yaml").read_text("utf-8"))


@cache
def topic_of_action() -> dict[str, str]:
    """Return the topic of each action."""
    return {action: topic for topic, entry in meanings()["topics"].items() for action in entry["actions"]}


@cache
def events() -> tuple[Event, ...]:
    """Return all affirmed events, in a fixed order."""
    m = meanings()
    return tuple(
        Event(person, action, place, time)
        for entry in m["topics"].values()
        for person, action, place, time in itertools.product(
            m["people"], entry["actions"], entry["places"], m["times"]
        )
    )


@cache
def opinions() -> tuple[Opinion, ...]:
    """Return all opinions, in a fixed order."""
    m = meanings()
    qualities = [q for group in m["sentiments"].values() for q in group]
    return tuple(Opinion(thing, quality) for thing, quality in itertools.product(m["things"], qualities))


class Phrases:
    """The wording of every meaning in one language."""

    def __init__(self, language: str):
        source = resources.files("isogloss.data.demo").joinpath("phrases") / f"{language}.yaml"
        self.language = language
        self.entries: dict = yaml.safe_load(source.read_text("utf-8"))

    def event(self, event: Event, sentence: str = "full") -> str:
        return self._fill(self.entries["sentences"][sentence], event)

    def question(self, kind: str, event: Event) -> str:
        return self._fill(self.entries["questions"][kind], event)

    def opinion(self, opinion: Opinion) -> str:
        words = {
            "thing": self.entries["things"][opinion.thing],
            "quality": self.entries["qualities"][opinion.quality],
        }
        form = _agreement(words["thing"])
        return self._sentence(
            _form(self.entries["sentences"]["opinion"], form).format(
                thing=_text(words["thing"]), quality=_form(words["quality"], form)
            )
        )

    def answer(self, kind: str, event: Event) -> str:
        """Return the span that answers a who, where or when question."""
        if kind == "who":
            return self._fill(self.entries["questions"].get("who_answer", "{who}"), event, capital=False)
        slot = {"where": ("places", event.place), "when": ("times", event.time)}[kind]
        return _text(self.entries[slot[0]][slot[1]])

    def deed(self, event: Event) -> str:
        """Return what was done or not done, as worded in the sentence: the verb or its complement."""
        return self._fill("{did}", event, capital=False)

    def label(self, task: str, label: str) -> str:
        return str(self.entries["labels"][task][label])

    def labels(self, task: str) -> dict[str, str]:
        return {label: str(word) for label, word in self.entries["labels"][task].items()}

    def instruction(self, task: str, phrasing: int, **parts: str) -> str:
        return self._sentence(self.entries["instructions"][task][phrasing].format(**parts))

    def _fill(self, template: "str | dict[str, str]", event: Event, capital: bool = True) -> str:
        person = self.entries["people"][event.person]
        action = self.entries["actions"][event.action]
        form = _agreement(person)
        template = _form(template, form)
        words: dict[str, str] = {}
        for _, field, spec, _ in Formatter().parse(template):
            if not field:
                continue
            key = f"{field}:{spec}" if spec else field
            match field:
                case "who":
                    value = person["text"]
                case "where":
                    value = self.entries["places"][event.place]
                case "when":
                    value = self.entries["times"][event.time]
                case "did":
                    value = action["did_not" if event.denied else "did"]
                case _:
                    value = action[field]
            words[key] = _form(value, spec or form)
        text = template
        for key, value in words.items():
            text = text.replace("{" + key + "}", value)
        return self._sentence(text) if capital else text

    def _sentence(self, text: str) -> str:
        if self.language == "tr" and text.startswith("i"):
            return "İ" + text[1:]
        return text[:1].upper() + text[1:]


@cache
def phrases(language: str) -> Phrases:
    """Return the wording in one of `LANGUAGES`; cached."""
    return Phrases(language)


def _agreement(entry: "str | dict") -> str:
    return entry.get("agrees", "") if isinstance(entry, dict) else ""


def _text(entry: "str | dict") -> str:
    return entry["text"] if isinstance(entry, dict) else entry


def _form(entry: "str | dict[str, str]", form: str) -> str:
    """Return the wording for an agreement form; a plain string applies to all forms."""
    return entry if isinstance(entry, str) else entry[form]


def check(language: str) -> list[str]:
    """Return the faults of a phrase file, one line each; empty if it is complete."""
    have, want, faults = phrases(language).entries, meanings(), []
    english = phrases("en").entries

    def compare(name: str, found: "list[str]", wanted: "list[str]") -> None:
        faults.extend(f"{language}: {name} lacks {key}" for key in wanted if key not in found)
        faults.extend(
            f"{language}: {name} has {key}, which no meaning names" for key in found if key not in wanted
        )

    for name in ("people", "times", "places", "things"):
        compare(name, list(have.get(name, {})), want[name])
    compare(
        "actions", list(have.get("actions", {})), [a for t in want["topics"].values() for a in t["actions"]]
    )
    compare(
        "qualities",
        list(have.get("qualities", {})),
        [q for group in want["sentiments"].values() for q in group],
    )
    for name in ("labels", "instructions"):
        compare(name, list(have.get(name, {})), list(english[name]))
    if faults:
        return faults
    for task, words in have["labels"].items():
        compare(f"labels.{task}", list(words), list(english["labels"][task]))
        if len(set(map(str, words.values()))) < len(words):
            faults.append(f"{language}: labels.{task} uses one word for two labels")
    for task, texts in have["instructions"].items():
        slots = sorted({f for _, f, _, _ in Formatter().parse(english["instructions"][task][0]) if f})
        if len(texts) < 3 or len(set(texts)) < len(texts):
            faults.append(f"{language}: instructions.{task} needs three different phrasings")
        for text in texts:
            if sorted({f for _, f, _, _ in Formatter().parse(text) if f}) != slots:
                faults.append(f"{language}: instructions.{task} must use exactly the slots {slots}: {text}")
    worded: dict[str, Event] = {}
    for event in events():
        for denied in (False, True):
            said = replace(event, denied=denied)
            texts = {
                kind: phrases(language).event(said, kind)
                for kind in ("full", "fronted", "no_when", "no_where")
            }
            if texts["full"] == texts["fronted"]:
                faults.append(f"{language}: full and fronted read the same: {texts['full']}")
                return faults
            for text in (texts["full"], texts["fronted"]):
                if worded.setdefault(text, said) != said:
                    faults.append(f"{language}: two meanings read the same: {text}")
                    return faults
    for event in events()[:: len(events()) // 200]:
        for kind in ("who", "where", "when"):
            phrases(language).question(kind, event)
            if phrases(language).answer(kind, event).lower() not in phrases(language).event(event).lower():
                faults.append(
                    f"{language}: the answer to {kind} does not stand in: {phrases(language).event(event)}"
                )
                return faults
    spoken = [phrases(language).opinion(opinion) for opinion in opinions()]
    if len(set(spoken)) < len(spoken):
        twice = next(text for text in spoken if spoken.count(text) > 1)
        faults.append(f"{language}: two opinions read the same: {twice}")
    return faults


def sample(language: str, seed: int = 0) -> list[str]:
    """Return sentences to proofread: every action, person, place, time, thing and quality appears."""
    import random

    rng = random.Random(seed)
    p, lines = phrases(language), []
    m = meanings()
    for index, action in enumerate(topic_of_action()):
        places = m["topics"][topic_of_action()[action]]["places"]
        for person in (m["people"][index % 6], m["people"][6 + index % 6]):
            event = Event(
                person, action, rng.choice(places), m["times"][(index * 5) % 12], rng.random() < 0.4
            )
            kind = rng.choice(["full", "fronted", "no_when", "no_where"])
            lines.append(p.event(event, kind))
            kind = rng.choice(["who", "where", "when"])
            lines.append(f"  {p.question(kind, event.affirmed())} — {p.answer(kind, event)}")
    lines.extend(p.opinion(opinion) for opinion in opinions()[::7])
    return lines


if __name__ == "__main__":
    import sys

    for code in sys.argv[1:] or LANGUAGES:
        faults = check(code)
        print("\n".join(faults or [f"{code}: complete", *sample(code)]))
