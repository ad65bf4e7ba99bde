"""What nuScenes' free text says of light and weather. Schema 3 holds the answer; of schema 2 the text is all there is."""

import re

_LETTER = r"[^\W\d_]"
_NIGHT = re.compile(rf"(?<!{_LETTER})(?:mid)?night(?:s|time)?(?!{_LETTER})")
_RAIN = re.compile(rf"(?<!{_LETTER})rain(?:s|y|ing|fall|storm|drops?)?(?!{_LETTER})")
_NO_RAIN = re.compile(rf"(?<!{_LETTER})(?:after|no|without)\s+(?:the\s+)?rain(?:ing|fall)?(?!{_LETTER})")


def conditions_of(description):
    """{"light": "day" or "night", "weather": "dry" or "rain"} of a scene's description, by whole words.

    A road that is wet after rain is dry weather. nuScenes writes "Night" and "Rain" where they are true and nothing elsewhere.
    """
    text = description.lower()
    return {
        "light": "night" if _NIGHT.search(text) else "day",
        "weather": "rain" if _RAIN.search(_NO_RAIN.sub("", text)) else "dry",
    }
