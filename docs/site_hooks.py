"""Hooks of mkdocs: files outside docs/ that its pages link to become part of the site.

A link such as `](../deploy/README.md)` works in the repository. The site has that page as
production.md, and files such as serving.py unchanged; a link to a folder becomes plain text.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
PAGES = {  # where the site has a page -> where the repository has it
    "index.md": "README.md",
    "production.md": "deploy/README.md",  # the theme takes a README for its section's first page
    **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")},
}


def on_files(files, config):
    """Add the pages, and the files that pages link to."""
    wanted = dict(PAGES)
    sources = [(file.abs_src_path, f"docs/{file.src_uri}") for file in files.documentation_pages()]
    sources += [(str(ROOT / path), path) for path in PAGES.values()]
    for path, name in sources:
        for link in LINK.finditer(Path(path).read_text()):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link[3]))
            known = target in PAGES.values() or target.startswith("docs/")
            if not known and (ROOT / target).is_file():
                wanted[target] = target
    for uri, path in wanted.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links of the repository into those of the site."""
    here = page.file.src_uri
    path = PAGES.get(here, f"docs/{here}")

    def turn(link):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[3]))
        if (ROOT / target).is_dir():
            return link[2]
        uri = next((site for site, one in PAGES.items() if one == target), None)
        uri = uri or target.removeprefix("docs/")
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        inner = LINK.sub(turn, link[2]) if "](" in link[2] else link[2]
        return f"{link[1]}[{inner}]({relative}{link[4] or ''})"

    parts = re.split(r"(^ *```.*?^ *```$|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if index % 2 else LINK.sub(turn, part) for index, part in enumerate(parts))
