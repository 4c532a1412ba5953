"""Hooks of MkDocs: files of the project that pages show or name, but that do not lie in docs/.

On a page `../X` is the project's file X, as it is for a reader of the Markdown files. Pictures and the project's own
pages become a part of the site; other files are links to the repository if its address is known, else only names.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

PROJECT = Path(__file__).resolve().parents[3]
OWN_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
SHOWN = "resources/readme/"  # pictures
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
REST = "Look up"  # the part of the navigation for pages that it does not name


def on_config(config):
    """Add pages of docs/ that the navigation does not name."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    rest = sorted(path.name for path in Path(config.docs_dir).glob("*.md") if path.name not in named)
    next(part for part in config.nav if REST in part)[REST].extend(rest)
    return config


def on_files(files, config):
    """Add the project's own pages, and the pictures."""
    for path in (*OWN_PAGES, *(SHOWN + file.name for file in sorted((PROJECT / SHOWN).glob("*.png")))):
        files.append(File.generated(config, path, abs_src_path=str(PROJECT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Make links of the Markdown files links of the site; what is code stays as it is."""
    source = page.file.src_uri
    place = source if source in OWN_PAGES else f"docs/{source}"
    known = {file.src_uri for file in files}

    def link(match):
        bang, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        own = path.removeprefix("docs/")
        if own in known:
            return f"{bang}[{label}]({posixpath.relpath(own, posixpath.dirname(source) or '.')}{anchor})"
        if not (PROJECT / path).exists():
            return match[0]  # for MkDocs to refuse
        return f"[{label}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else label

    parts = FENCE.split(markdown)
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))
