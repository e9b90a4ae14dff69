"""What the book needs of Sphinx and no published extension does.

1. Docstrings write formulas as the notebooks do, `$...$` and `$$...$$`, indent code without a mark, and
   describe arguments together (`x0, eps: ...`): turn all three into what Sphinx reads.
2. A named tuple's fields are described in its docstring: leave out their "Alias for field number 0". A constant's
   value is shown only where it is short, readable and the same on every machine.
3. A type alias such as `dyndiff.denoiser.Denoise` is data to Sphinx: let annotations link to it.
4. No page asks another host for anything: leave out sphinx-thebe, which Jupyter Book always loads, and show the
   notebooks' Colab badge as words.
5. Browsers break a line between a formula and the full stop after it: keep them together.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![`\\$])\$(?!\s)([^$`]+?)(?<!\s)\$(?!\$)", re.DOTALL)
CODE = re.compile(r"^(\S[^\n]*)\n\n(?= {4}\S)", re.MULTILINE)
THEBE = re.compile(r'<script type="text/x-thebe-config">.*?</script>(\s*<script>kernelName = .*?</script>)?', re.DOTALL)
SOLUTION = re.compile(r"(Solution to)(<a [^>]*>) ")  # sphinx-exercise has the space inside of the link
TOGETHER = re.compile(r"^ {4}((?:\w+, )+\w+)(:.*(?:\n {5,}.*)*)", re.MULTILINE)


def translate_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring as the library writes it to the reStructuredText that Sphinx reads."""
    text = "\n".join(lines)
    text = CODE.sub(r"\1\n\n::\n\n", text)
    text = TOGETHER.sub(lambda match: "\n".join(f"    {each}{match[2]}" for each in match[1].split(", ")), text)
    text = DISPLAY.sub(lambda match: f"\n.. math::\n\n   {' '.join(match[1].split())}\n", text)
    text = INLINE.sub(lambda match: f":math:`{' '.join(match[1].split())}`", text)
    if what in ("attribute", "data", "property"):
        text = f"..\n\n{text}"  # an empty comment, or napoleon takes what precedes a colon for a type
    lines[:] = text.split("\n")


def hide_value(app: Sphinx, doctree: nodes.document) -> None:
    """Leave out a constant's value where it is long, or a path or an address that only this machine has."""
    for value in list(doctree.findall(addnodes.desc_annotation)):
        text = value.astext()
        if text.lstrip().startswith("=") and (len(text) > 100 or re.search(r"Path\(| at 0x|\._C\.", text)):
            value.parent.remove(value)


def skip_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skip what `typing.NamedTuple` documents by itself; None leaves the choice to others."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def link_alias(app: Sphinx, env: Any, node: nodes.Element, content: nodes.Element) -> nodes.Element | None:
    """An annotation asks for a class: offer the type alias of that name."""
    if node.get("refdomain") != "py" or node.get("reftype") != "class":
        return None
    domain, target = env.get_domain("py"), node["reftarget"]
    for name in (target, f"{node.get('py:module')}.{target}"):
        if (entry := domain.objects.get(name)) is not None and entry.objtype == "data":
            return domain.resolve_xref(env, node["refdoc"], app.builder, "data", name, node, content)
    return None


def write_badge_out(app: Sphinx, doctree: nodes.document) -> None:
    """The Colab badge is an image on another host: put its description in its place."""
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].endswith("/colab-badge.svg"):
            image.replace_self(nodes.Text(image.get("alt") or "Open in Colab"))


def keep_together(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let no line break come between a formula and the punctuation that follows it, or the bracket before it."""
    for math in list(doctree.findall(nodes.math)) if app.builder.format == "html" else []:
        parent, place = math.parent, math.parent.index(math)
        before, after = parent[place - 1] if place else None, parent[place + 1] if place + 1 < len(parent) else None
        together = nodes.inline("", "", classes=["together"])
        if isinstance(before, nodes.Text) and (match := re.search(r"\S{1,9}$", before)):
            together += nodes.Text(match[0])
            parent[place - 1] = nodes.Text(before[: match.start()])
        together += math.deepcopy()
        if isinstance(after, nodes.Text) and (match := re.match(r"\S{1,9}", after)):
            together += nodes.Text(match[0])
            parent[place + 1] = nodes.Text(after[match.end() :])
        if len(together) > 1:
            parent[place] = together


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove what sphinx-thebe writes into a page: scripts, one with the address of another host, and settings."""

    def mentions_thebe(script: Any) -> bool:
        return "thebe" in f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', '')}".lower()

    context["script_files"] = [script for script in context["script_files"] if not mentions_thebe(script)]
    context["body"] = SOLUTION.sub(r"\1 \2", THEBE.sub("", context.get("body", "")))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", translate_docstring, priority=400)  # before napoleon reads sections
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("missing-reference", link_alias)
    app.connect("doctree-read", hide_value)
    app.connect("doctree-read", write_badge_out)
    app.connect("doctree-resolved", keep_together)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
