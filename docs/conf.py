"""Settings of the documentation build."""

from __future__ import annotations

from importlib.metadata import version

project = "Stage Orchestrator"
author = "The Stage Orchestrator authors"
release = version("stage-orchestrator")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True

# The build must not depend on a network, so what other projects document is not looked up.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|networkx|pluggy|numpy|collections|typing|pathlib|os|enum|abc|types)(\..*)?"),
]
