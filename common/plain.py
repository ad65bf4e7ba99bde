"""Text that comes from data, names or servers, as a line may show it."""

MOST_CHARS = 600


def plain(text, most=MOST_CHARS):
    """The text on one line, without control characters and no longer than `most`: what is cut is cut from its middle.

    Runs of white space become one blank; what cannot be printed (terminal escapes, half surrogates, marks that turn the
    direction of writing) becomes a backslash escape.
    """
    text = str(text)
    if len(text) > 4 * most:  # escapes are longer than what they stand for, and nobody needs all of a megabyte escaped
        text = f"{text[: 2 * most]} … {text[-2 * most :]}"
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > most:
        half = (most - 3) // 2
        text = f"{text[:half]} … {text[len(text) - half :]}"
    return text
