"""How good and how late words are: error rates, lagging, and likeness of translations."""

from __future__ import annotations

import re
import unicodedata

from edgegemma.errors import MissingExtraError


def plain(text: str) -> str:
    """Words alone, as Whisper's basic normalizer has them: lower case, nothing in brackets, no marks or symbols.

    An apostrophe within a word stays.
    """
    text = re.sub(r"<[^>]*>|\[[^\]]*\]|\([^)]*\)", " ", text.lower().replace("’", "'"))
    kept = (
        c if c == "'" or unicodedata.category(c)[0] not in "MSP" else " "
        for c in unicodedata.normalize("NFKC", text)
    )
    return " ".join(re.sub(r"(?<!\w)'|'(?!\w)", " ", "".join(kept)).split())


def errors(said: list[str], heard: list[str]) -> dict[str, float]:
    """Word and character error rates of plain texts.

    Raises
    ------
    MissingExtraError
        jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError("bench speech: needs jiwer", "bench") from error
    said, heard = [plain(text) for text in said], [plain(text) for text in heard]
    return {"wer": float(jiwer.wer(said, heard)), "cer": float(jiwer.cer(said, heard))}


def likeness(wanted: list[str], got: list[str]) -> dict[str, float]:
    """ChrF and BLEU of translations, 0 to 100.

    Raises
    ------
    MissingExtraError
        sacrebleu is not installed.
    """
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtraError("bench speech: needs sacrebleu", "bench") from error
    return {
        "chrf": float(sacrebleu.corpus_chrf(got, [wanted]).score),
        "bleu": float(sacrebleu.corpus_bleu(got, [wanted]).score),
    }


def laal(delays_s: list[float], seconds: float, wanted: str) -> float | None:
    """Length-adaptive average lagging of words that came at these times; None without words.

    Parameters
    ----------
    delays_s : list of float
        when each word was known, seconds since the recording began
    seconds : float
        of the recording
    wanted : str
        the words that should have come
    """
    if not delays_s:
        return None
    step = seconds / max(len(delays_s), len(wanted.split()))
    counted = sum(at < seconds for at in delays_s)
    last = min(counted, len(delays_s) - 1)  # the first that came after the end counts too
    return sum(delays_s[n] - n * step for n in range(last + 1)) / (last + 1)
