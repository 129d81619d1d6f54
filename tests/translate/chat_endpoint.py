"""A chat endpoint on loopback that translates from a table, with injected faults."""

import re

from faulty import Faulty

SWAHILI = {
    "Where is the library?": "Maktaba iko wapi?",
    "What is the weather like today?": "Hali ya hewa ikoje leo?",
    "Write a letter to your mother.": "Andika barua kwa mama yako.",
    "Wake me up at 7 in the morning.": "Niamshe saa 7 asubuhi.",
    "Say hello to {name} for me.": "Msalimie {name} kwa niaba yangu.",
    "How do you cook rice with coconut?": "Unapikaje wali kwa nazi?",
    "The book is on the table.": "Kitabu kiko juu ya meza.",
    "I want to buy two kilograms of meat.": "Nataka kununua kilo mbili za nyama.",
}
BACK = {own: english for english, own in SWAHILI.items()}


class Endpoint(Faulty):
    """Answers with the known translations in either direction; some faults are in the answer itself."""

    refusal = b'{"error": "no"}'

    def names(self, body):
        return [text for _, text in _asked(body)]

    def answered(self, body, fault):
        texts = _asked(body)
        said, finish = [f"<{tag}>{(SWAHILI | BACK)[text]}</{tag}>" for tag, text in texts], "stop"
        match fault:
            case "one too few":
                said = said[:-1]
            case "one too many":
                said = [*said, "<t99>Zaidi.</t99>"]
            case "in English":
                said = [f"<{tag}>{text}</{tag}>" for tag, text in texts]
            case "another":
                said = [f"<{tag}>My cat sleeps on the roof.</{tag}>" for tag, _ in texts]
            case "length":
                said, finish = [said[0][: len(said[0]) // 2]], "length"
            case "nothing":
                said = []
        return {
            "choices": [{"message": {"content": "\n".join(said)}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 10 * len(texts), "completion_tokens": 3 * len(texts)},
        }


def _asked(body) -> list[tuple[str, str]]:
    """Return the tag and the text of each text in a request."""
    return re.findall(r"<(t+\d+)>(.*?)</\1>", body["messages"][-1]["content"], re.DOTALL)
