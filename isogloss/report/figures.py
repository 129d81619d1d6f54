"""Figures: format numbers for people. Fractions become per cent, differences become percentage points.

Pure and locale-independent: the same number gives the same text on every machine. Minus is U+2212.
"""

import math
from typing import Final, TypeGuard

PREFIXES: Final = ("", "k", "M", "G", "T", "P", "E")
NONE: Final = "–"  # shown where there is no number


def percent(fraction: float | None) -> str:
    """0.6304 → "63.0"; the heading has the unit."""
    return _minus(f"{100 * fraction:.1f}") if _known(fraction) else NONE


def points(difference: float | None) -> str:
    """A difference of two fractions in points, always with its sign: 0.218 → "+21.8"."""
    if not _known(difference):
        return NONE
    text = _minus(f"{100 * difference:+.1f}")
    return "0.0" if text in {"+0.0", "0.0"} else text


def interval(low: float | None, high: float | None) -> str:
    """0.615, 0.644 → "61.5–64.4"; empty if either bound is unknown."""
    return f"{percent(low)}–{percent(high)}" if _known(low) and _known(high) else ""


def interval_of_points(low: float | None, high: float | None) -> str:
    """-0.011, 0.003 → "−1.1 to +0.3"; empty if either bound is unknown."""
    return f"{points(low)} to {points(high)}" if _known(low) and _known(high) else ""


def count(number: float | None, unit: str = "") -> str:
    """Exact below 10,000, then three digits and k, M, G, T, P or E: 12345678 → "12.3 M"."""
    if not _known(number):
        return NONE
    if abs(number) < 10_000 and not unit:
        return _minus(f"{number:,.0f}")
    scaled, prefixes = float(number), iter(PREFIXES)
    prefix = next(prefixes)
    while abs(scaled) >= 999.5 and prefix != PREFIXES[-1]:
        scaled, prefix = scaled / 1000, next(prefixes)
    digits = 0 if abs(scaled) >= 99.95 or not prefix else 1 if abs(scaled) >= 9.995 else 2
    return _minus(f"{scaled:.{digits}f} {prefix}{unit}".rstrip())


def duration(seconds: float | None) -> str:
    """4.2 → "4.2 s", 65 → "1 min 5 s", 3725 → "1 h 2 min"."""
    if not _known(seconds):
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def size(number: float | None) -> str:
    """Format bytes: in MiB below 1 GiB, else in GiB with two decimals."""
    if not _known(number):
        return NONE
    return f"{number / 2**20:,.0f} MiB" if number < 2**30 else f"{number / 2**30:,.2f} GiB"


def short(number: float) -> str:
    """Three significant digits below 1000, for an axis or a curve's end: 0.01234 → "0.0123"."""
    if number and (abs(number) < 1e-3 or abs(number) >= 1e5):
        mantissa, _, power = f"{number:.2e}".partition("e")
        return f"{_minus(mantissa.rstrip('0').rstrip('.'))}e{int(power)}".replace("e-", "e−")
    return _minus(f"{number:.3g}" if abs(number) < 999.5 else f"{number:,.0f}")


def _known(number: float | None) -> TypeGuard[float]:
    return number is not None and math.isfinite(number)


def _minus(text: str) -> str:
    # no sign on zero
    return text.removeprefix("-") if text.strip("-0.") == "" else text.replace("-", "−", 1)
