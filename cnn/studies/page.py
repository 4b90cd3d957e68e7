"""The report as one HTML page that needs nothing beside it: for wide and narrow screens, light and dark."""

import base64
import dataclasses
import html as markup
from collections.abc import Mapping, Sequence

from cnn.studies.tables import Cell, Table


@dataclasses.dataclass(frozen=True)
class Section:
    """Of a report: text, then what there is of table, picture, commands and notes."""

    title: str
    text: str
    table: Table | None = None
    picture: str | None = None
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    loud: bool = False


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #59636e; --line: #d8dee4; --box: #f6f8fa;
  --alarm: #b3121d; --alarm-box: #fdeced; --accent: #0067a3 }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e6e9ed; --faint: #a3abb5; --line: #313842;
  --box: #1b2129; --alarm: #ff8f88; --alarm-box: #3a1a1d; --accent: #56b4e9 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
p, ul { max-width: 46rem }
.answer { font-size: 1.1rem; border-left: .3rem solid var(--accent); padding-left: .9rem }
.alarm { color: var(--alarm); background: var(--alarm-box); border: 1px solid; border-radius: .4rem;
  padding: .6rem .9rem; font-weight: 600 }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100% }
th, td { padding: .35rem .7rem; text-align: right; border-top: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; background: var(--paper) }
th { background: var(--box); border-top: 0; vertical-align: bottom; white-space: normal; font-weight: 600 }
.left { text-align: left }
.wide { white-space: normal; min-width: 6rem; overflow-wrap: anywhere }
.wide:last-child { min-width: 12rem }
th:first-child, td:first-child { position: sticky; left: 0; white-space: normal; min-width: 7rem; max-width: 14rem;
  border-right: 1px solid var(--line) }
td.loud { color: var(--alarm); font-weight: 700 }
.note { color: var(--faint); margin: .2rem 0 .6rem }
picture { display: block; overflow-x: auto; margin: .6rem 0 }
img { display: block; width: 100%; min-width: 34rem; max-width: 46rem; height: auto }
pre { background: var(--box); border: 1px solid var(--line); border-radius: .4rem; padding: .7rem .9rem;
  overflow-x: auto; font-size: .85rem }
"""


def html(
    question: str,
    answer: str,
    alarm: str | None,
    sections: Sequence[Section],
    light: Mapping[str, bytes],
    dark: Mapping[str, bytes],
) -> str:
    """The page. Pictures are PNG files by name, in a light and a dark form."""
    body = [f'<h1>{_text(question)}</h1>']
    body += [f'<p class="alarm">{_text(alarm)}</p>'] if alarm else []
    body.append(f'<p class="answer">{_text(answer)}</p>')
    for section in sections:
        if section.picture and section.picture not in light and not section.table:
            continue
        body += ['<section>', f'<h2>{_text(section.title)}</h2>']
        body += [f'<p class="{"alarm" if section.loud else "note"}">{_text(section.text)}</p>'] if section.text else []
        body += [_table(section.table)] if section.table else []
        if section.picture and section.picture in light:
            body.append(_picture(section.title, light[section.picture], dark[section.picture]))
        body += [f'<pre>{_text(chr(10).join(section.commands))}</pre>'] if section.commands else []
        body += ['<ul>', *(f'<li>{_text(note)}</li>' for note in section.notes), '</ul>'] if section.notes else []
        body.append('</section>')
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{_text(question)}</title>\n<style>{STYLE}</style>\n</head>\n'
    )
    return head + '<body>\n' + '\n'.join(body) + '\n</body>\n</html>\n'


def _table(table: Table) -> str:
    def classes(column: int, cell: Cell | None = None) -> str:
        left = table.at_left(column)
        names = [('left', left), ('wide', left and column > 0), ('loud', cell is not None and cell.loud)]
        chosen = ' '.join(name for name, holds in names if holds)
        return f' class="{chosen}"' if chosen else ''

    header = ''.join(f'<th{classes(column)}>{_text(name)}</th>' for column, name in enumerate(table.header))
    rows = [
        ''.join(f'<td{classes(column, cell)}>{_text(cell.text)}</td>' for column, cell in enumerate(row))
        for row in table.rows
    ]
    body = '\n'.join(f'<tr>{row}</tr>' for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _picture(title: str, light: bytes, dark: bytes) -> str:
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark)}">'
        f'<img src="{_uri(light)}" alt="{_text(title)}: a picture of what the tables say"></picture>'
    )


def _uri(png: bytes) -> str:
    return f'data:image/png;base64,{base64.b64encode(png).decode()}'


def _text(text: str) -> str:
    return markup.escape(text)
