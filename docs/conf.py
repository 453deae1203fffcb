"""Settings of the documentation build."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "Stage Orchestrator"
author = "The Stage Orchestrator authors"
release = importlib.metadata.version("stage-orchestrator")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True

nitpick_ignore_regex = [
    # The build must not depend on a network, so what other projects document is not looked up.
    ("py:.*", r"(torch|networkx|pluggy|numpy|collections|typing|pathlib|os|enum|abc|types|threading)(\..*)?"),
    # Sphinx splits a type in an "Attributes" section at its comma.
    ("py:class", r"(dict|list|tuple|set)\[\w+"),
    # Aliases of plain types, and what only the project's own code makes or calls.
    (
        "py:(class|obj)",
        r"(.*\.)?(Any|Handle|Path|PortSpec|Pad|AnyDim|Loader|Executable|GraphBuilder|SubPipeline|PlanData|Derived|Observer|SessionT|LeafStep|BlockStep|LoopLikeStep)",
    ),
]


def resolve_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement
) -> Element | None:
    """Links `Stage`, or `Plan.load`, to the one documented thing whose full name ends so.

    Annotations that are imported for type checking only reach Sphinx as bare names.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    target = str(node["reftarget"])
    full = sorted(
        name for name, entry in domain.objects.items() if name.endswith(f".{target}") and not entry.aliased
    )
    if len(full) != 1:
        return None
    docname = node.get("refdoc", env.docname)
    return domain.resolve_xref(env, docname, app.builder, "obj", full[0], node, content)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve_by_last_name)
