"""MkDocs calls this: the pages that scripts write into docs/results go into the navigation, whichever there are."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the section Results, its index first."""
    folder = Path(config.docs_dir) / "results"
    names = sorted((page.name for page in folder.glob("*.md")), key=lambda name: (name != "index.md", name))
    if names:
        config.nav.insert(2, {"Results": [f"results/{name}" for name in names]})
    return config
