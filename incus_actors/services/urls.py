"""URLs of objects, as `used_by` and lifecycle events name them.

Owns the quoting and the project parameter; pure.
"""

from __future__ import annotations

from urllib.parse import quote


def url_of(*parts: str, project: str = "default") -> str:
    """Return "/1.0/instances/c1" for ("instances", "c1"), with ?project= unless it is "default"."""
    path = "/1.0/" + "/".join(quote(part, safe="") for part in parts)
    return path if project == "default" else f"{path}?project={quote(project, safe='')}"
