"""How the site is built: `make docs`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from scfusion_fm import __version__  # noqa: E402

project = "scfusion_fm"
author = "the authors of scfusion_fm"
copyright = "2026, Apache-2.0"
version = release = __version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "card_figures",
    "command_reference",
    "page_titles",
]
exclude_patterns = ["_build", "_ext", "_templates"]
needs_sphinx = "8.0"
smartquotes = False  # options begin with two hyphens
templates_path = ["_templates"]

# Docstrings: numpydoc, types in the signature alone; what stands between single backticks is code.
default_role = "code"
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
numpydoc_show_class_members = False

# Pages in Markdown; notebooks are Markdown, too (jupytext), and run where they stand while the
# site is built.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_block"]
myst_heading_anchors = 4
nb_execution_mode = os.environ.get("SCFUSION_NOTEBOOKS", "force")  # `off`: pages without outputs, in a minute less
if nb_execution_mode == "off":
    suppress_warnings = ["misc.highlighting_failure"]  # without a kernel, cells pass for plain Python
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # but where a cell says that it is to be shown

html_theme = "sphinx_book_theme"
html_title = "scfusion_fm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "navbar_persistent": [],  # the search stands in the side bar
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_prompt_text = "$ "
