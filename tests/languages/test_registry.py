"""Language registry: expected values are literals from the data sets' own lists."""

import subprocess
import sys
import unicodedata
from dataclasses import FrozenInstanceError, replace

import pytest

from isogloss.languages import (
    XGLUE_TWELVE,
    UnknownLanguageError,
    languages,
    resolve,
)
from isogloss.languages.registry import index_spellings

FLORES_101 = """
afr amh ara asm ast azj bel ben bos bul cat ceb ces ckb cym dan deu ell eng est fas fin fra ful gle glg guj
hau heb hin hrv hun hye ibo ind isl ita jav jpn kam kan kat kaz kea khm kir kor lao lav lin lit ltz lug luo
mal mar mkd mlt mon mri msa mya nld nob npi nso nya oci orm ory pan pol por pus ron rus slk slv sna snd som
spa srp swe swh tam tel tgk tgl tha tur ukr umb urd uzb vie wol xho yor zho_simpl zho_trad zul
"""
XGLUE = "ar bg de el en es fr hi it nl pl pt ru sw th tr ur vi zh"
# The 51 locales of MASSIVE 1.0 and ca-ES of 1.1, without sq-AL, which FLORES-101 lacks.
MASSIVE = """
af-ZA am-ET ar-SA az-AZ bn-BD ca-ES cy-GB da-DK de-DE el-GR en-US es-ES fa-IR fi-FI fr-FR he-IL hi-IN hu-HU
hy-AM id-ID is-IS it-IT ja-JP jv-ID ka-GE km-KH kn-IN ko-KR lv-LV ml-IN mn-MN ms-MY my-MM nb-NO nl-NL pl-PL
pt-PT ro-RO ru-RU sl-SL sv-SE sw-KE ta-IN te-IN th-TH tl-PH tr-TR ur-PK vi-VN zh-CN zh-TW
"""
NTREX = """
afr amh arb aze-Latn bak bel bem ben bod bos bul cat ces ckb-Arab cym dan deu div dzo ell eng-GB eng-IN eng-US
est eus ewe fao fas fij fil fin fra fra-CA fuc gle glg guj hau heb hin hmn hrv hun hye ibo ind isl ita jpn kan
kat kaz khm kin kir kmr kor lao lav lit ltz mal mar mey mkd mlg mlt mon mri msa mya nde nep nld nno nob nso
nya orm pan pol por por-BR prs pus ron rus shi sin slk slv smo sna-Latn snd-Arab som spa spa-MX sqi srp-Cyrl
srp-Latn ssw swa swe tah tam tat tel tgk-Cyrl tha tir ton tsn tuk tur uig ukr urd uzb ven vie wol xho yor yue
zho-CN zho-TW zul
"""
# The names of FLORES+ (2024 on) for our languages.
FLORES_PLUS = """
afr_Latn amh_Ethi arb_Arab asm_Beng ast_Latn azj_Latn bel_Cyrl ben_Beng bos_Latn bul_Cyrl cat_Latn ceb_Latn
ces_Latn ckb_Arab cmn_Hans cmn_Hant cym_Latn dan_Latn deu_Latn ekk_Latn ell_Grek eng_Latn fil_Latn fin_Latn
fra_Latn fuv_Latn gaz_Latn gle_Latn glg_Latn guj_Gujr hau_Latn heb_Hebr hin_Deva hrv_Latn hun_Latn hye_Armn
ibo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kam_Latn kan_Knda kat_Geor kaz_Cyrl kea_Latn khk_Cyrl
khm_Khmr kir_Cyrl kor_Hang lao_Laoo lin_Latn lit_Latn ltz_Latn lug_Latn luo_Latn lvs_Latn mal_Mlym mar_Deva
mkd_Cyrl mlt_Latn mri_Latn mya_Mymr nld_Latn nob_Latn npi_Deva nso_Latn nya_Latn oci_Latn ory_Orya pan_Guru
pbt_Arab pes_Arab pol_Latn por_Latn ron_Latn rus_Cyrl slk_Latn slv_Latn sna_Latn snd_Arab som_Latn spa_Latn
srp_Cyrl swe_Latn swh_Latn tam_Taml tel_Telu tgk_Cyrl tha_Thai tur_Latn ukr_Cyrl umb_Latn urd_Arab uzn_Latn
vie_Latn wol_Latn xho_Latn yor_Latn zsm_Latn zul_Latn
"""
NOT_IN_NTREX = "as ast ceb ff jv kam kea lg ln luo oc or umb"
# ISO 15924 code to the first word of its letters' Unicode names.
LETTERS = {
    "Arab": "ARABIC", "Armn": "ARMENIAN", "Beng": "BENGALI", "Cyrl": "CYRILLIC", "Deva": "DEVANAGARI",
    "Ethi": "ETHIOPIC", "Geor": "GEORGIAN", "Grek": "GREEK", "Gujr": "GUJARATI", "Guru": "GURMUKHI",
    "Hang": "HANGUL", "Hans": "CJK", "Hant": "CJK", "Hebr": "HEBREW", "Jpan": "CJK", "Khmr": "KHMER",
    "Knda": "KANNADA", "Laoo": "LAO", "Latn": "LATIN", "Mlym": "MALAYALAM", "Mymr": "MYANMAR",
    "Orya": "ORIYA", "Taml": "TAMIL", "Telu": "TELUGU", "Thai": "THAI",
}  # fmt: skip


def test_every_language_of_flores_101_is_there_once() -> None:
    """The registry has the 102 codes of FLORES-101: 101 languages, Chinese in two scripts."""
    assert len(FLORES_101.split()) == 102
    assert sorted(FLORES_101.split()) == sorted(language.flores101 for language in languages().values())


def test_xglue_and_massive_are_covered() -> None:
    """The 19 languages of XGLUE and 51 locales of MASSIVE each occur once."""
    assert XGLUE.split() == sorted(language.xglue for language in languages().values() if language.xglue)
    assert MASSIVE.split() == sorted(
        language.massive for language in languages().values() if language.massive
    )


def test_languages_that_ntrex_lacks_have_no_code_there() -> None:
    """Exactly thirteen languages of FLORES-101 have no file in NTREX-128."""
    assert NOT_IN_NTREX.split() == sorted(
        language.code for language in languages().values() if language.ntrex is None
    )


def test_every_code_is_one_of_its_release() -> None:
    """FLORES-200 from NLLB's tokenizer, FLORES+ from its repository, NTREX from its LANGUAGES.tsv."""
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    table = languages().values()
    assert {language.flores200 for language in table} <= set(FAIRSEQ_LANGUAGE_CODES)
    assert sorted(language.flores_plus for language in table) == FLORES_PLUS.split()
    assert {language.ntrex for language in table} - {None, "eng"} <= set(NTREX.split())


def test_codes_renamed_by_flores_plus_resolve_to_the_same_language() -> None:
    """Estonian, Filipino and Chinese; a new code without script works too, and cmn is simplified Chinese."""
    renamed = {one.code: one.flores_plus for one in languages().values() if one.flores_plus != one.flores200}
    assert renamed == {"et": "ekk_Latn", "tl": "fil_Latn", "zh": "cmn_Hans", "zh-Hant": "cmn_Hant"}
    for code, name in renamed.items():
        assert resolve(name).code == code
    assert [resolve(code).code for code in ("ekk", "fil", "cmn")] == ["et", "tl", "zh"]


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        *[("iw", "he"), ("in", "id"), ("jw", "jv"), ("mo", "ro")],  # withdrawn
        *[("no", "nb"), ("nor", "nb"), ("aze", "az"), ("ori", "or"), ("lav", "lv")],  # macrolanguages
        *[("ger", "de"), ("fre", "fr"), ("chi", "zh"), ("per", "fa"), ("dut", "nl")],  # ISO 639-2/B
        *[("pt-BR", "pt"), ("en_GB", "en")],
    ],
)
def test_other_codes_in_use_resolve(spelling: str, code: str) -> None:
    """Withdrawn codes, macrolanguages, ISO 639-2/B, and regions that data sets name."""
    assert resolve(spelling).code == code


@pytest.mark.parametrize(
    "code", ["vec", "qya", "tlh_Latn", "xx", "kas_Arab", "Uru", "Latin", "Corsican", "Sumerian"]
)
def test_an_unrelated_language_is_never_suggested(code: str) -> None:
    """An unknown code is rarely a typo, nor is a name that differs in a third of its letters."""
    with pytest.raises(UnknownLanguageError) as error:
        resolve(code)
    says = "is not a known language code; use one such as sw, swh_Latn or Swahili"
    assert str(error.value) == f"{code!r} {says}"


def test_flores_200_codes_are_distinct_and_made_of_language_and_script() -> None:
    """A FLORES-200 code is the ISO 639-3 code, an underscore and the script."""
    for language in languages().values():
        assert f"{language.iso639_3}_{language.script}" == language.flores200
    assert len({language.flores200 for language in languages().values()}) == 102


@pytest.mark.parametrize(
    ("flores101", "flores200"),
    [
        ("ara", "arb_Arab"),
        ("fas", "pes_Arab"),
        ("ful", "fuv_Latn"),
        ("kea", "kea_Latn"),  # the official table says lim_Latn
        ("lav", "lvs_Latn"),  # the official table also says lij_Latn
        ("mon", "khk_Cyrl"),
        ("msa", "zsm_Latn"),
        ("orm", "gaz_Latn"),
        ("pus", "pbt_Arab"),
        ("uzb", "uzn_Latn"),
        ("zho_simpl", "zho_Hans"),
        ("zho_trad", "zho_Hant"),
    ],
)
def test_changed_flores_101_codes_resolve_to_their_flores_200_code(flores101: str, flores200: str) -> None:
    """Where FLORES renamed a language, both codes resolve to it."""
    assert flores200 == resolve(flores101).flores200
    assert resolve(flores200) is resolve(flores101)


@pytest.mark.parametrize(
    ("code", "spellings"),
    [
        ("sw", "sw swh SWA swh_Latn swh-latn sw-KE sw_ke Swahili kiswahili"),
        ("ar", "ar ara arb arb_Arab ar-SA Arabic العربية"),
        ("zh", "zh zho zh-Hans zho_Hans zho_simpl zho-CN zh_CN 简体中文"),
        ("zh-Hant", "zh-hant zh_Hant zho_Hant zho_trad zho-TW zh-TW 繁體中文"),
        ("tl", "tl tgl fil tl-PH Tagalog"),
        ("tr", "tr tur TUR_LATN TÜRKÇE"),
    ],
)
def test_every_spelling_of_a_language_resolves_to_it(code: str, spellings: str) -> None:
    """Any system's code in any case, with either separator, gives the same object."""
    for spelling in spellings.split():
        assert resolve(spelling) is languages()[code]


def test_every_code_and_name_maps_to_its_own_language() -> None:
    """No code or name is claimed by two languages."""
    for language in languages().values():
        for spelling in (*language.codes(), language.name, language.autonym):
            assert resolve(spelling) is language


def test_a_name_typed_in_decomposed_letters_resolves() -> None:
    """Unicode composition does not matter."""
    assert resolve(unicodedata.normalize("NFD", "Yorùbá")) is resolve("yo")
    assert resolve(unicodedata.normalize("NFC", "ଓଡ଼ିଆ")) is resolve("or")


def test_a_code_claimed_by_two_languages_is_refused() -> None:
    """Loading stops at a conflict and names the two languages."""
    clash = replace(resolve("zu"), ntrex="swa")
    with pytest.raises(ValueError) as error:
        index_spellings({"sw": resolve("sw"), "zu": clash})
    assert str(error.value) == "'swa' means both sw and zu; drop one of them"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("swa_Latn2", "'swa_Latn2' is not a known language code; did you mean swh_Latn (Swahili)?"),
        ("Swahilli", "'Swahilli' is not a known language code; did you mean sw (Swahili)?"),
        ("arab_Arab", "'arab_Arab' is not a known language code; did you mean arb_Arab (Arabic)?"),
        ("ur-IN", "'ur-IN' is not a known language code; did you mean ur-PK (Urdu)?"),
        ("q\nq", "'q\\nq' is not a known language code; use one such as sw, swh_Latn or Swahili"),
        ("", "'' is not a known language code; use one such as sw, swh_Latn or Swahili"),
    ],
)
def test_an_unknown_code_is_refused_with_the_nearest_known_one(code: str, message: str) -> None:
    """The one-line message names the input and what would be right."""
    with pytest.raises(UnknownLanguageError) as error:
        resolve(code)
    assert message == str(error.value)
    assert isinstance(error.value, ValueError)


def test_right_to_left_languages() -> None:
    """Seven of the languages are written from right to left."""
    rtl = [language.code for language in languages().values() if language.direction == "rtl"]
    assert sorted(rtl) == ["ar", "ckb", "fa", "he", "ps", "sd", "ur"]


def test_autonyms_are_written_in_the_language_s_own_script() -> None:
    """Every letter of an autonym belongs to the script that the entry names."""
    for language in languages().values():
        for letter in filter(str.isalpha, language.autonym.replace("\u02bb", "")):
            assert unicodedata.name(letter).startswith(LETTERS[language.script]), (language.code, letter)


@pytest.mark.parametrize(
    ("code", "family"),
    [
        ("sw", ("Atlantic-Congo", "Benue-Congo", "Narrow Bantu")),
        ("ur", ("Indo-European", "Indo-Iranian", "Indo-Aryan")),
        ("th", ("Tai-Kadai", "Kam-Tai")),
        ("hu", ("Uralic",)),
    ],
)
def test_family_is_a_path_from_the_top(code: str, family: tuple[str, ...]) -> None:
    """A family path starts at Glottolog's top family."""
    assert family == resolve(code).family


def test_resource_classes_follow_joshi_2020() -> None:
    """The XGLUE targets are in the classes of their Joshi numbers."""
    by_class: dict[str, list[str]] = {"high": [], "middle": [], "low": []}
    for code in XGLUE_TWELVE:
        by_class[resolve(code).resource].append(code)
    assert by_class == {
        "high": ["ar", "es", "fr", "hi", "ru", "tr", "vi"],
        "middle": ["bg", "el", "th", "ur"],
        "low": ["sw"],
    }


def test_the_twelve_targets() -> None:
    """The default targets are twelve languages of XGLUE without English."""
    assert XGLUE_TWELVE == ("ar", "bg", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi")


def test_a_language_cannot_be_changed() -> None:
    """Entries are frozen and can be members of a set."""
    with pytest.raises(FrozenInstanceError):
        resolve("sw").name = "Kiswahili"  # type: ignore[misc]
    assert len({resolve("sw"), resolve("swh")}) == 1


def test_importing_the_registry_loads_no_torch() -> None:
    """The registry stays light enough for the command line's help."""
    code = "import sys, isogloss.languages as l; l.resolve('sw'); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
