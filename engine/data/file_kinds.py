"""Suffixes of files that hold text in a form that is not to be learned as it stands, and the way to plain text.

Suffixes that are other names of a format which is read are here too. Knows nothing of the files themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

ALIASES = {
    ".text": ".txt",
    ".rst": ".txt",
    ".org": ".txt",
    ".adoc": ".txt",
    ".asciidoc": ".txt",
    ".markdown": ".md",
    ".mdown": ".md",
    ".mkd": ".md",
    ".jsonlines": ".jsonl",
    ".jl": ".jsonl",
    ".ldjson": ".jsonl",
    ".feather": ".arrow",
    ".pq": ".parquet",
}
"""Other names of formats that are read."""


@dataclass(frozen=True)
class NotPlain:
    """A kind of file with text in it.

    Attributes:
        holds: what the file holds, for a sentence.
        why: what would be wrong with its text as it stands.
        todo: the way to plain text.
        short: the same in a few words, for a count of files.
    """

    holds: str
    why: str
    todo: str
    short: str

    def told(self, path: str) -> tuple[str, str, str]:
        """Return what happened, why, and what to do."""
        return f"{path} holds {self.holds}, not plain text.", self.why, self.todo


_MARKUP = NotPlain(
    "markup",
    "Its tags would be learned as text.",
    "Extract its text, save it as .txt, and give that.",
    "extract its text first",
)
_DOCUMENT = NotPlain(
    "a formatted document",
    "Its text is packed among fonts and layout.",
    "Extract its text (pdftotext does for a PDF, pandoc for most others), save it as .txt, and give that.",
    "extract its text first",
)
_SHEET = NotPlain("a table of an office program", "", "Save the sheet as .csv, and give that.", "save it as .csv first")
_NOTEBOOK = NotPlain(
    "a notebook",
    "It is JSON with outputs and pictures in it.",
    "Write its text with jupyter nbconvert --to markdown, and give the .md file.",
    "jupyter nbconvert --to markdown writes its text",
)
_MAIL = NotPlain(
    "e-mail",
    "Its headers and encoded parts would be learned as text.",
    "Save what the messages say as .txt, or as .jsonl with a field text for each.",
    "save what the messages say as .txt first",
)
_SUBTITLES = NotPlain(
    "subtitles",
    "Their times would be learned as text.",
    "Take out the numbers and times, save the lines as .txt, and give that.",
    "take out the times and save it as .txt first",
)
_LATEX = NotPlain(
    "LaTeX",
    "Its commands would be learned as text.",
    "Convert it with pandoc -t plain, or rename it to .txt if its commands are to be learned.",
    "convert it with pandoc -t plain first",
)
_DATABASE = NotPlain(
    "a database", "", "Save its rows as .jsonl or .csv, and give that.", "save its rows as .jsonl first"
)
_LOOSE_JSON = NotPlain(
    "JSON with comments", "Only plain JSON is read.", "Save it as .json without comments.", "save it as .json"
)

_NOT_PLAIN = {
    suffix: kind
    for kind, suffixes in (
        (_MARKUP, ".html .htm .xhtml .xml .svg .mht .mhtml .tei"),
        (_DOCUMENT, ".pdf .doc .docx .odt .rtf .epub .mobi .azw3 .djvu .ps .ppt .pptx .odp .pages .fb2"),
        (_SHEET, ".xls .xlsx .ods .numbers"),
        (_NOTEBOOK, ".ipynb"),
        (_MAIL, ".mbox .eml .msg .pst"),
        (_SUBTITLES, ".srt .vtt .ass .ssa .sbv"),
        (_LATEX, ".tex .ltx"),
        (_DATABASE, ".db .sqlite .sqlite3 .duckdb"),
        (_LOOSE_JSON, ".jsonc .json5 .hjson"),
    )
    for suffix in suffixes.split()
}


def not_plain(suffix: str) -> NotPlain | None:
    """The kind of a file with text that is not plain; None for what is read, and for what is no text."""
    return _NOT_PLAIN.get(suffix)
