"""Detection of a text file's encoding, and conversion to UTF-8 block by block.

A file has one encoding from its beginning to its end. Its first bytes that are not ASCII determine it: a byte-order
mark, UTF-8, or Windows-1252 if its letters form words in it. Knows nothing of files and records.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BOM = b"\xef\xbb\xbf"

_WINDOW_BYTES = 256 * 2**10  # that are looked at; a smaller file is looked at as a whole
_MOST_NULS = 0.001  # of the bytes; with more it is no text
_FEWEST_CHARACTERS = 48  # by which UTF-16 without a mark is told from anything else
_CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1f\x7f]")
_NO_TEXT = ("Cc", "Cn", "Co", "Cs")  # Unicode's categories of control characters, and of codes without a character
_MOST_DAMAGE = 0.001  # of the lines: with more that are in no known encoding it is not damage
_BY_MARK = (
    (b"\xff\xfe\0\0", "utf-32-le", "UTF-32"),
    (b"\0\0\xfe\xff", "utf-32-be", "UTF-32"),
    (b"\xff\xfe", "utf-16-le", "UTF-16"),
    (b"\xfe\xff", "utf-16-be", "UTF-16"),
)
# Patterns that are rare in Windows-1252 text: a sign within a word, a capital after a small letter, a ÿ. Text in
# the code pages of DOS, of a Mac or of Eastern Europe is full of these when it is read so.
_NO_WORDS = re.compile(
    r"(?<=[^\W\d_])[“”‚„†‡ˆ‰‹›•™˜¨¦¬¯´¸¡¿¤¥¢£§©®±×÷¹²³¼½¾¶«»°€](?=[^\W\d_])|(?<=[a-zß-ÿ])[À-ÞŠŒŽŸ]|ÿ"
)
# Letters that one language has in Windows-1252. Text of another code page is full of letters that no language has
# together: ð, þ and ý are Icelandic with á, and Turkish (ğ, ş, ı in its own code page) with ç.
_LETTERS_OF_LANGUAGES = tuple(
    map(
        frozenset,
        (
            "éèêëàâáäåçñïîíóöôøúüœß",  # English with words of others
            "àâæçèéêëîïôœùûüÿñöäáíóã",  # French, and foreign names in it
            "áéíñóúüçàèò",  # Spanish
            "áâãàçéêíóôõúü",  # Portuguese
            "àèéìîïíòóùúç",  # Italian, Catalan
            "áéíóúàèòëïöüâêîôûä",  # Dutch, Irish, Afrikaans, Welsh
            "åäöéàüáæø",  # Swedish, Finnish
            "åæøéèêóòôâäöü",  # Danish, Norwegian
            "áðéíóúýþæö",  # Icelandic
            "áðíóúýæø",  # Faroese
            "äöüõšž",  # Estonian
            "çë",  # Albanian
        ),
    )
)
_SENTENCES = re.compile(r'[\n".!?;|\t]+')
_MOST_FOREIGN = 0.1  # of the sentences may have letters that no language has together, such as names
_NO_ORDINALS = re.compile(r"(?<![^\W_])[ªº](?=[^\W\d_])|(?<=[^\W\d_])[ªº](?=[^\W\d_])")  # at a word's begin, in a word
_IN_WORDS = str.maketrans("", "", "\xad\xb7\xaa\xba")  # soft hyphen, Catalan's point, ordinals


@dataclass(frozen=True)
class Encoding:
    """Encoding of a file.

    Attributes:
        codec: Python's name; None when it is none that is known.
        name: as users call it.
        bad_lines, lines: how many of the lines that were looked at are not UTF-8.
        is_all: whether these are all lines of the file.
        mark_bytes: length of the byte-order mark.
    """

    codec: str | None
    name: str
    bad_lines: int = 0
    lines: int = 0
    is_all: bool = True
    mark_bytes: int = 0

    @property
    def counted(self) -> str:
        """``30 of 101 lines are not UTF-8``."""
        return f"{self.bad_lines:,} of {'' if self.is_all else 'the first '}{self.lines:,} lines are not UTF-8"


UTF_8 = Encoding("utf-8", "UTF-8")


class UnknownEncoding(Exception):
    """A file has an unknown encoding; ``encoding`` has the counts."""

    def __init__(self, encoding: Encoding, *, is_rest: bool) -> None:
        super().__init__(encoding.counted)
        self.encoding = encoding
        self.is_rest = is_rest


class Utf8Blocks:
    """The blocks of a text file, as UTF-8 without a byte-order mark.

    Args:
        blocks: the file's bytes.

    Attributes:
        encoding: of what was read so far; ASCII counts as UTF-8.
        taken_bytes, given_bytes: how much came in and went out.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self.encoding = UTF_8
        self.taken_bytes = 0
        self.given_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        """The blocks.

        Raises:
            UnknownEncoding: the file, or the rest of it, is in none that is known.
        """
        old_mac = None
        for block in self._as_utf8():
            if old_mac is None:  # lines that end with a carriage return alone
                old_mac = b"\r" in block and b"\n" not in block
            self.given_bytes += len(block)
            yield block.replace(b"\r", b"\n") if old_mac else block

    def _as_utf8(self) -> Iterator[bytes]:
        """Each block; bytes that are not what the encoding says come as bytes that are not UTF-8, for the readers."""
        window, is_all = self._window(b"")
        self.encoding = by_mark(window)
        window = window[self.encoding.mark_bytes :]
        is_rest = False
        while window and window.isascii() and self.encoding.codec == "utf-8":
            yield window
            is_rest = True
            window, is_all = self._next()
        if self.encoding.codec == "utf-8" and window:
            self.encoding = judged(window, is_all=is_all and not is_rest)
        if self.encoding.codec is None:
            raise UnknownEncoding(self.encoding, is_rest=is_rest)
        if self.encoding.codec != "utf-8":
            yield from self._decoded(window)
            return
        while window:
            yield window
            window = self._take()

    def _next(self) -> tuple[bytes, bool]:
        """The next block; where it is no ASCII, the window that begins with it."""
        block = self._take()
        return (block, False) if block.isascii() else self._window(block)

    def _window(self, begun: bytes) -> tuple[bytes, bool]:
        """Bytes to judge by, and whether no others come behind them."""
        parts, size = [begun], len(begun)
        while size < _WINDOW_BYTES:
            block = self._take()
            if not block:
                return b"".join(parts), True
            parts.append(block)
            size += len(block)
        return b"".join(parts), False

    def _take(self) -> bytes:
        block = next(self._blocks, b"")
        self.taken_bytes += len(block)
        return block

    def _decoded(self, window: bytes) -> Iterator[bytes]:
        codec = self.encoding.codec
        assert codec is not None
        # Undecodable bytes become surrogates, which valid UTF-8 never has: the readers skip and count such lines.
        errors = "surrogateescape" if codec == "cp1252" else "surrogatepass"
        decoder = codecs.getincrementaldecoder(codec)(errors)
        block = window
        while block:
            try:
                text = decoder.decode(block)
            except UnicodeDecodeError:  # half of a character in the middle of UTF-16
                text = "\udcff"
                decoder.reset()
            yield text.encode("utf-8", errors)
            block = self._take()


def by_mark(head: bytes) -> Encoding:
    """The encoding that a file's first bytes mark; UTF-8 if they mark none."""
    if head.startswith(BOM):
        return Encoding("utf-8", "UTF-8", mark_bytes=len(BOM))
    for mark, codec, name in _BY_MARK:
        if head.startswith(mark):
            return Encoding(codec, name, mark_bytes=len(mark))
    # UTF-16 without a mark: every second byte of Western text is 0.
    some = head[: 2**16]
    pairs = len(some) // 2
    even, odd = some[0::2].count(0), some[1::2].count(0)
    if pairs >= 2 and max(even, odd) > 0.6 * pairs and min(even, odd) < 0.01 * pairs:
        return Encoding("utf-16-le" if odd > even else "utf-16-be", "UTF-16")
    # Of other scripts only blanks, line breaks and digits have a 0: the file is UTF-16 if it reads as text in one order
    # of bytes alone. By chance a fourth of all pairs of bytes are no characters.
    if even + odd > _MOST_NULS * len(some) and not _is_text_with_nuls(some):
        orders = [codec for codec in ("utf-16-le", "utf-16-be") if _is_text_in(codec, some)]
        if len(orders) == 1:
            return Encoding(orders[0], "UTF-16")
    return UTF_8


def _is_text_with_nuls(data: bytes) -> bool:
    """Return whether bytes are UTF-8 without control characters but for zeros: by pairs ASCII reads as Chinese."""
    rest = data.replace(b"\0", b"")
    return not _CONTROLS.search(rest) and is_utf8(_without_cut_character(rest))


def _is_text_in(codec: str, data: bytes) -> bool:
    """Return whether bytes are characters that texts have, with blanks or line breaks among them."""
    try:
        text = data[: len(data) // 2 * 2].decode(codec)
    except UnicodeDecodeError as error:
        if error.start < len(data) - 4:  # no pair that the end of the window cuts
            return False
        text = data[: error.start].decode(codec)
    if len(text) < _FEWEST_CHARACTERS or not any(character in text for character in " \n"):
        return False
    return not any(
        character not in "\t\n\r\ufeff" and unicodedata.category(character) in _NO_TEXT for character in text
    )


def judged(window: bytes, *, is_all: bool) -> Encoding:
    """UTF-8 or Windows-1252, by lines that are not ASCII.

    A file with more lines in UTF-8 than others, or hardly any others, is a UTF-8 file with damaged lines.
    """
    if window.count(0) > _MOST_NULS * len(window):
        return UTF_8  # no text: its reader says so
    lines = [line for line in re.split(rb"[\r\n]+", window) if line]
    cut = b"" if is_all else lines.pop()
    if not lines:
        lines, cut = [_without_cut_character(cut)], b""
    foreign = [line for line in lines if not line.isascii()]
    bad = [line for line in foreign if not is_utf8(line)]
    is_damaged = (len(bad) == 1 and len(lines) > 1) or len(bad) <= _MOST_DAMAGE * len(lines)
    if 2 * len(bad) < len(foreign) or not bad:
        return Encoding("utf-8", "UTF-8", len(bad), len(lines), is_all)
    if makes_words_in_cp1252(bad):
        return Encoding("cp1252", "Windows-1252", len(bad), len(lines), is_all)
    codec, name = ("utf-8", "UTF-8") if is_damaged else (None, "unknown")
    return Encoding(codec, name, len(bad), len(lines), is_all)


def makes_words_in_cp1252(lines: list[bytes]) -> bool:
    """Return whether lines look like words when they are read as Windows-1252."""
    try:
        text = b"\n".join(lines).decode("cp1252")
    except UnicodeDecodeError:
        return False
    foreign = sum(not character.isascii() for character in text)
    foreign_letters = sum(character.isalpha() and not character.isascii() for character in text)
    letters = sum(character.isalpha() for character in text)
    odd = len(_NO_WORDS.findall(text.translate(_IN_WORDS))) + len(_NO_ORDINALS.findall(text))
    if 2 * foreign_letters > max(letters, 2) or 10 * odd > foreign:
        return False
    of_a_language = [_is_of_a_language(part) for part in _SENTENCES.split(text) if not part.isascii()]
    return of_a_language.count(False) <= _MOST_FOREIGN * len(of_a_language)


def _is_of_a_language(sentence: str) -> bool:
    letters = {letter for letter in sentence.translate(_IN_WORDS).lower() if letter.isalpha() and not letter.isascii()}
    return any(letters <= language for language in _LETTERS_OF_LANGUAGES)


def is_utf8(data: bytes) -> bool:
    """Return whether these bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_cut_character(data: bytes) -> bytes:
    for length in range(1, min(3, len(data)) + 1):
        if data[-length] >= 0xC0:
            return data[:-length]
    return data
