"""The registry of suites: a name and what loads it."""

from collections.abc import Callable

from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.suites import demo, flores101, massive, xnli

SUITES: dict[str, Callable[..., SuiteData]] = {
    "demo": demo.load,
    "massive": massive.load,
    "flores101": flores101.load,
    "xnli": xnli.load,
}
