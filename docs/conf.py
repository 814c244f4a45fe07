"""What Sphinx is told. Nothing of the site comes from elsewhere when it is read."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import safesock

project = "safesock"
author = "the safesock authors"
version = release = safesock.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "docs.reference"]
exclude_patterns = ["README.md"]
default_role = "py:obj"  # What stands in `backticks` in a docstring: code, and a link if it can be.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "inherited-members": True}
# They are imported where they are used only.
autodoc_mock_imports = ["opentelemetry", "prometheus_client"]
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "safesock"
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["wide-tables.css"]
html_theme_options = {"navigation_with_keys": True}
