"""Names of languages, as a prompt spells them."""

from __future__ import annotations

import difflib

from edgegemma.errors import InputError

LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "kn": "Kannada", "ko": "Korean", "lt": "Lithuanian",
    "lv": "Latvian", "ml": "Malayalam", "mr": "Marathi", "ms": "Malay", "nl": "Dutch",
    "no": "Norwegian", "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish",
    "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def language(name: str) -> str:
    """Give a language's English name from it or from its code: ``es`` and ``spanish`` are ``Spanish``.

    Raises
    ------
    InputError
        It is not in the list; the message has the nearest ones.
    """
    wanted = name.strip().lower()
    known = LANGUAGES | {full.lower(): full for full in LANGUAGES.values()}
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, [k for k in known if len(k) > 2])
    hint = f"did you mean {' or '.join(known[n] for n in near)}?" if near else "e.g. es or Spanish"
    raise InputError(f"language {name!r}: is not known; {hint}")
