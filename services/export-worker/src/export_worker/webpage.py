"""A report as one web page that loads nothing and runs nothing."""

import base64
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Final

from export_worker.model import Comparison, ImageBlock, Report, Thumbnail, Verdict

POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content Security Policy: were there a script, it would not run."""

SIGNATURES: Final = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
}
"""First bytes of the pictures that a report may hold."""


def webpage(report: Report, folder: Path) -> bytes:
    """UTF-8. Every string of the report is escaped. folder: where its pictures are."""
    words = report["words"]
    use = [words[report["use"]]] if report["use"] else []
    look = report["look"]
    footer = " · ".join(part for part in (*use, words["not_for_diagnosis"], look["footer"]) if part)
    logo = _image(look["logo"], look["organization"], folder) if look["logo"] else ""
    parts = [
        f'<div class="masthead">{logo} {escape(look["organization"] or "Fluoro")}</div>',
        f"<h1>{escape(report['title'])}</h1>",
        _note(f"{words['job']} …{report['short_job']} · {report['created_text']}"),
        *(f'<p class="warning" role="note">{escape(each)}</p>' for each in report["warnings"]),
        _counts(report),
        _table(_words(words, "step operation succeeded skipped failed"), report["steps"]),
        _note(report["naming"]),
        *_problems(report),
        *_deidentification(report),
        *_images(report, folder),
        *_comparison(report["comparison"], words, folder),
        *_thumbnails(report["thumbnails"]["rows"], words, folder),
        _note(report["thumbnails"]["note"]),
        *_tables(report),
    ]
    page = (
        f'<!doctype html>\n<html lang="{escape(report["language"])}"><meta charset="utf-8">'
        # In the page itself, because it is opened from a disk, where no server sends headers.
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(report['title'])}</title>"
        # `style.style_of` lets nothing but a colour through, so it needs no escape.
        f"<style>:root{{--accent:{look['accent']}}}{_style()}</style>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<footer>{escape(footer)}</footer></html>\n"
    )
    return page.encode()


@cache
def _style() -> str:
    return (files("export_worker") / "webpage.css").read_text("utf-8")


def _joined(mark: str, *parts: str) -> str:
    """Those that say something, escaped."""
    return escape(mark.join(part for part in parts if part))


def _words(words: dict[str, str], keys: str) -> list[str]:
    return [words[key] for key in keys.split()]


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are escaped."""
    top = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>" if body else ""


def _section(title: str, *parts: str) -> list[str]:
    # A heading over nothing would look like a section that was lost.
    shown = [part for part in parts if part]
    return [f"<h2>{escape(title)}</h2>", *shown] if shown else []


def _counts(report: Report) -> str:
    words, counts = report["words"], report["counts"]
    pairs = {
        "inputs": counts["inputs"],
        "succeeded": counts["succeeded"],
        "skipped": counts["skipped"],
        "failed": counts["failed"],
        "not_reached": counts["not_reached"],
    }
    return f"<p>{escape(' · '.join(f'{value} {words[key]}' for key, value in pairs.items()))}</p>"


def _problems(report: Report) -> list[str]:
    words = report["words"]
    rows = [
        [row["input"], row["steps"], words[row["state"]], row["reason"], row["message"]]
        for row in report["problems"]["rows"]
    ]
    head = _words(words, "input steps state reason message")
    return _section(words["problems"], _table(head, rows), _note(report["problems"]["note"]))


def _deidentification(report: Report) -> list[str]:
    it, words = report["deidentification"], report["words"]
    if it is None:
        return []
    figures = [
        [words["cleaned"], it["cleaned"]],
        [words["changed"], it["changed"]],
        [words["masked"], it["masked"]],
        [words["left"], it["left"]],
    ]
    return _section(
        words["deidentification"],
        _table(("", ""), [*figures, *it["facts"]]),
        _table(_words(words, "action meaning values"), it["actions"]),
    )


def _image(file: str, alt: str, folder: Path) -> str:
    data = (folder / file.lstrip("/")).read_bytes()
    # By its first bytes: browsers refuse data of another type than said.
    media = next(media for head, media in SIGNATURES.items() if data.startswith(head))
    source = f"data:{media};base64,{base64.b64encode(data).decode()}"
    return f'<img alt="{escape(alt)}" src="{source}">'


def _figure(file: str, alt: str, caption: str, folder: Path) -> str:
    """caption: of HTML."""
    picture = _image(file, alt, folder) if file else ""
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'


def _images(report: Report, folder: Path) -> list[str]:
    words = report["words"]
    blocks = [_block(image, words, folder) for image in report["images"]]
    rules = _table(("", ""), report["rules"])
    return _section(words["images"], _note(report["images_note"]), rules, *blocks)


def _block(image: ImageBlock, words: dict[str, str], folder: Path) -> str:
    figures = "".join(
        _figure(one["file"], one["alt"], _joined(", ", one["kind"], one["caption"]), folder)
        for one in image["pictures"]
    )
    parts = [
        f"<h3>{escape(words['input'])} {escape(image['input'])}</h3>",
        _note(" · ".join(image["facts"])),
        f'<div class="pictures">{figures}</div>',
    ]
    for verdict in image["verdicts"]:
        parts += _verdict(verdict, words)
    for one in (*image["classes"], *image["others"]):
        parts.append(_note(", ".join(filter(None, (one["model"], one["frame"])))))
        tiles = "".join(
            _figure(row["file"], row["alt"], _joined(" · ", row["percent"], row["name"]), folder)
            for row in one["rows"]
            if row.get("file")
        )
        rows = "".join(
            f"<tr><td>{escape(row['name'])}</td>"
            f"<td>{_bar(row['share'])}{escape(row['percent'])}</td></tr>"
            for row in one["rows"]
            if not row.get("file")
        )
        parts.append(f'<div class="pictures little">{tiles}</div><table>{rows}</table>')
    for finding in image["findings"]:
        counted = "tiles" if finding["of_tiles"] else "voxels"
        head = _words(words, f"class {counted} share volume mean")
        # A mean without its unit is a number that anybody may misread.
        head[-1] = f"{head[-1]} {finding['unit']}".strip()
        rows_ = [
            [row["name"], row["voxels"], row["percent"], row["volume"], row["mean"]]
            for row in finding["rows"]
        ]
        parts += [_note(finding["model"]), _table(head, rows_)]
    return "\n".join(parts)


def _verdict(it: Verdict, words: dict[str, str]) -> list[str]:
    title = ", ".join(filter(None, (it["title"], it["frame"])))
    return [
        f"<p>{escape(title)}: <strong>{escape(it['said'])}</strong></p>",
        *(f'<p class="warning" role="note">{escape(each)}</p>' for each in it["warnings"]),
        _note(" · ".join(it["facts"])),
        _table(_words(words, "feature found score weight product"), it["rows"]),
    ]


def _thumbnails(rows: Sequence[Thumbnail], words: dict[str, str], folder: Path) -> list[str]:
    if not any(row["file"] for row in rows):
        return []
    figures = "".join(
        _figure(
            row["file"],
            row["alt"],
            _joined(" ", row["input"], _state(row, words), row["said"], row["percent"]),
            folder,
        )
        for row in rows
    )
    return _section(words["all_items"], f'<div class="pictures little">{figures}</div>')


def _state(row: Thumbnail, words: dict[str, str]) -> str:
    return "" if row["state"] == "succeeded" else words[row["state"]]


def _comparison(it: Comparison | None, words: dict[str, str], folder: Path) -> list[str]:
    if it is None:
        return []
    head = [words["class"]]
    for place, name in enumerate(it["variants"]):
        head += [name] if place == 0 else [name, words["difference"]]
    parts = [_note(words["compared"].format(reference=it["variants"][0]))]
    for subject in it["subjects"]:
        rows = []
        for row in subject["rows"]:
            cells = [row["name"], row["values"][0]]
            for value, change in zip(row["values"][1:], row["differences"], strict=True):
                cells += [value, change]
            rows.append(cells)
        figures = "".join(
            _figure(one["file"], one["alt"], escape(one["kind"]), folder)
            for one in subject["pictures"]
        )
        parts += [
            f"<h3>{escape(subject['name'])}</h3>",
            f'<div class="pictures">{figures}</div>',
            _note(subject["quantity"]),
            _table(head, rows),
        ]
    return _section(words["comparison"], *parts, _note(it["note"]))


def _tables(report: Report) -> list[str]:
    words = report["words"]
    others = [
        [other["input"], other["model"], row["name"], row["voxels"], row["percent"], row["volume"]]
        for other in report["other_findings"]["rows"]
        for row in other["rows"]
    ]
    facts = [
        *(row for model in report["models"] for row in model),
        [words["job"], report["job"]],
        [words["created"], report["created_text"]],
        *report["software"],
    ]
    return [
        *_section(
            words["other_findings"],
            _table(_words(words, "input model class voxels share volume"), others),
            _note(report["other_findings"]["note"]),
        ),
        *_section(
            words["instances"],
            _table(
                _words(
                    words,
                    "input modality body_part size bits photometric transfer_syntax sop_class",
                ),
                report["instances"]["rows"],
            ),
            _note(report["instances"]["note"]),
        ),
        *_section(
            words["provenance"],
            _table(("", ""), facts),
            _table(_words(words, "step begun ended attempts"), report["runs"]["rows"]),
            _table(_words(words, "input bytes input_sha"), report["sources"]["rows"]),
            _note(report["sources"]["note"]),
            _table(
                _words(words, "input array range decoder pixel_sha"),
                report["certificates"]["rows"],
            ),
            _note(report["certificates"]["note"]),
        ),
    ]
