"""The small pieces of HTML that all sections of the report use. Every text is escaped here."""

from __future__ import annotations

from html import escape


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f'<div class="wide"><table class="{kind}">{top}<tbody>\n{lines}\n</tbody></table></div>'
