"""The documentation site: `make docs` builds it into build/site, strictly and without a network."""

import re
from typing import Any

from luma_core import __version__

project = "LUMA"
author = "The LUMA contributors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
default_role = "code"
html_theme = "furo"
html_title = f"LUMA {release}"
html_show_sphinx = False
suppress_warnings = ["misc.highlighting_failure"]  # JSON with "..." for what is left out

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

_PAGES = {"CONTRIBUTING.md": "docs/contributing.md", "CHANGELOG.md": "docs/changelog.md"}


def _lead_to_pages(*event: Any) -> None:
    """Let what README.md and its like link to be pages, or the paths of files that are none."""
    content: list[str] = event[-1]

    def lead(match: re.Match[str]) -> str:
        text, target = match.groups()
        return f"[{text}]({_PAGES[target]})" if target in _PAGES else f"`{target}`"

    content[0] = re.sub(r"\[([^\]]*)\]\((?!docs/|https?:|#)([^)\s]+)\)", lead, content[0])


def setup(app: Any) -> None:
    """Register what this site adds to Sphinx."""
    app.connect("include-read", _lead_to_pages)
