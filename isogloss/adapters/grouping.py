"""Group languages into families: from a file, or at random.

Each function returns a family name per language, which `tree.build_tree` uses instead of Glottolog's.
"""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from isogloss.adapters.tree import family_name
from isogloss.config.yaml_io import load_yaml
from isogloss.data.formats.lines import nearest
from isogloss.errors import ConfigError
from isogloss.languages import UnknownLanguageError, resolve


def families_of_file(path: Path, targets: Sequence[str]) -> dict[str, str]:
    """Read families from a YAML file of `family: [codes]`, which may list further languages.

    Raises:
        ConfigError: The file is missing or malformed, a language is unknown or in two families, or a target
            is in none.
    """
    if not path.is_file():
        raise ConfigError(
            f"languages.tree: {path} does not exist; name a YAML file of `family: [codes]`, or "
            "families, flat, shared or random"
        )
    entries = load_yaml(path)
    if not isinstance(entries, dict) or not all(isinstance(codes, list) for codes in entries.values()):
        raise ConfigError(f"{path}: a tree is `family: [codes]`, one line for each family")
    found: dict[str, str] = {}
    for family, spellings in entries.items():
        for spelling in spellings:
            try:
                code = resolve(str(spelling)).code
            except UnknownLanguageError as error:
                raise ConfigError(f"{path}: {family}: {error}") from None
            if code in found:
                raise ConfigError(f"{path}: {code} is in {found[code]} and in {family}; name it once")
            found[code] = str(family)
    if missing := [code for code in targets if code not in found]:
        raise ConfigError(f"{path}: {missing[0]} is in no family; {nearest(missing[0], found)}")
    return {code: found[code] for code in targets}


def random_families(targets: Sequence[str], seed: int) -> dict[str, str]:
    """Assign languages at random to families of the same sizes as Glottolog's."""
    dealt = iter(random.Random(f"families/{seed}").sample(list(targets), len(targets)))
    sizes = Counter(map(family_name, targets)).values()
    found = {code: f"group {n}" for n, size in enumerate(sizes, start=1) for code in islice(dealt, size)}
    return {code: found[code] for code in targets}
