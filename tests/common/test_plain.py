"""Whatever text is met, what is shown of it is one short line that no terminal obeys."""

from hypothesis import given
from hypothesis import strategies as st

from common.plain import MOST_CHARS, plain


@given(st.text(max_size=3000) | st.text(st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Co")), max_size=400))
def test_one_printable_line_of_bounded_length(text):
    shown = plain(text)
    assert shown.isprintable() and len(shown) <= MOST_CHARS and plain(shown) == shown
    shown.encode()


def test_plain_text_stays_as_it_is_and_ends_are_kept():
    assert plain("Küche, 2 m; --on-error skip") == "Küche, 2 m; --on-error skip"
    assert plain("a\x1b[2J\nb\u202ec") == r"a\x1b[2J b\u202ec"
    long = plain("begin " + "x" * 10**6 + " end")
    assert long.startswith("begin x") and long.endswith("x end") and " … " in long
