"""Text that came from elsewhere (data, names, servers), made fit to be shown: it says what it says and does nothing."""

import unicodedata

MOST = 4000  # characters of a line
_INERT = "\n\t"
# Of Unicode's categories: controls, among them a terminal's escape; what turns the direction of text or has no width; halves of
# surrogates, which cannot be written; separators of lines that are none to a terminal.
_ACTIVE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def plain(text, most=MOST):
    """The text with what would act on a terminal or a page written as an escape, such as \\x1b; of longer lines the ends.

    Line breaks and tabs stay.
    """
    return "\n".join(_bounded(_escaped(line), most) for line in str(text).split("\n"))


def one_line(text, most=MOST):
    """The same as one line: runs of white space, line breaks among them, are single blanks."""
    return plain(" ".join(str(text).split()), most)


def _escaped(line):
    if line.isprintable():
        return line
    return "".join(c if c in _INERT or unicodedata.category(c) not in _ACTIVE else _code(ord(c)) for c in line)


def _code(number):
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def _bounded(line, most):
    if len(line) <= most:
        return line
    half = (most - 3) // 2
    return f"{line[:half]}...{line[len(line) - half :]}"
