import pytest
from journal_runs import add_piece, begin

from skyreels_v2_infer.run.journal import Journal


@pytest.fixture
def begun(tmp_path) -> Journal:
    """A run with two pieces, of frames 0 to 4 and 5 to 12."""
    made = begin(tmp_path)
    add_piece(made, 5, 0)
    add_piece(made, 8, 5)
    return made
