"""Text as it is, for a terminal that reads markup."""

from rich.markup import escape


def plain(text: str) -> str:
    """Brackets are brackets, and bytes of file names that are no UTF-8 are spelt out."""
    return escape(text.encode(errors="backslashreplace").decode())
