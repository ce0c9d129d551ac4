"""Credits of a dataset: who made its shapes, under which license."""

from collections.abc import Iterable, Mapping

from xcube.data.dataset import Entry
from xcube.data.furniture import model_name


def credits_text(entries: Iterable[Entry]) -> str:
    """List licenses, creators and titles as Markdown, with one bullet per creator.

    Shapes of which neither license nor creator are known, such as procedural ones, are left out, and so are the copies
    of a model that is listed. Without any shape, the text is empty.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}  # titles by license, creator and name of the model
    for entry in sorted(entries):
        about = entry.about
        if about.license or about.creator:
            creators = found.setdefault(about.license or "Unknown license", {})
            creators.setdefault(about.creator or "Unknown creator", {})[model_name(entry.name)] = about.title
    sections = [
        "\n".join([f"{license}:", "", *(_bullet(name, creators[name]) for name in sorted(creators, key=str.casefold))])
        for license, creators in sorted(found.items())
    ]
    return "".join(f"{section}\n\n" for section in sections).removesuffix("\n")


def _bullet(creator: str, titles: Mapping[str, str]) -> str:
    """One creator with the number of models and their titles, each once."""
    noun = "model" if len(titles) == 1 else "models"
    return f"- {creator}, {len(titles)} {noun}: {', '.join(sorted(set(titles.values()), key=str.casefold))}"
