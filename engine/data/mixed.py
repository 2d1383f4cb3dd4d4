"""Files in which some records are conversations of another form than the others: several data sets in one file.

A record is read in another form only if it has no field of the file's own form, and is a conversation by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.data.beside import is_nothing
from engine.data.fields import Unclear, choose_form
from engine.data.form import Form
from engine.data.spoken import Record


def form_of_mixed(records: Sequence[Record], form: Form | Unclear) -> Form | Unclear:
    """The form of the first conversation, where no form is that of half of the records, and none is a text."""
    if isinstance(form, Form) or form.why not in ("many", "none"):
        return form
    forms = [choose_form([record], None) for record in records]
    chats = [each for each in forms if isinstance(each, Form) and each.is_chat]
    others = [each for each in forms if each not in chats]
    are_empty = all(isinstance(each, Unclear) and each.why == "none" for each in others)
    return chats[0] if len(chats) > len(others) and are_empty else form


def other_form(record: Record, form: Form) -> Form | None:
    """The form of a record that has nothing of the file's form and is a conversation; None for any other."""
    names = [form.within] if form.within else form.parts.values()
    if not all(is_nothing(record.get(name)) for name in names):
        return None
    other = choose_form([record], None)
    return other if isinstance(other, Form) and other.is_chat else None
