"""A package that is there and refuses to be imported is not told as missing: installing it again would not help."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.data.arrow import read_arrow
from engine.data.hub_dataset import dataset_rows
from engine.data.parquet import read_parquet
from engine.data.tally import Tally
from engine.errors import DataError

READERS = {
    "parquet": ("pyarrow", lambda: read_parquet(Path("a.parquet"), Tally())),
    "arrow": ("pyarrow", lambda: read_arrow(Path("a.arrow"), Tally())),
    "dataset": ("datasets", lambda: dataset_rows("owner/name", "train")),
}
REFUSES = "raise ImportError('it requires NumPy 2.0 or newer, found 1.26.0')"
NEEDS_ANOTHER = "import a_package_that_is_not_there"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("code", "why", "todo"),
    [
        (None, "not installed", "install it: pip install {}"),
        (REFUSES, "but cannot be imported (it requires NumPy 2.0 or newer", "--upgrade {}"),
        (NEEDS_ANOTHER, "but cannot be imported (No module named 'a_package_that_is_not_there')", "--upgrade {}"),
    ],
)
def test_why_a_package_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, code: str | None, why: str, todo: str
) -> None:
    package, read = READERS[reader]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    if code is None:
        monkeypatch.setitem(sys.modules, package, None)
    else:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError) as caught:
        next(read())
    assert why in f"{caught.value.what} {caught.value.why}"
    assert todo.format(package) in caught.value.todo.lower()
