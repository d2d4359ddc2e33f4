"""URLs of objects, as `used_by` and lifecycle events name them.

Owns the quoting and the project parameter; pure.
"""

from __future__ import annotations

from urllib.parse import quote


def url_of(*parts: str, project: str = "default", target: str = "") -> str:
    """Return "/1.0/instances/c1" for ("instances", "c1"), with ?project= unless it is "default", and ?target= where a
    name alone could mean things of several members."""
    path = "/1.0/" + "/".join(quote(part, safe="") for part in parts)
    given = {"project": "" if project == "default" else project, "target": target}
    query = "&".join(f"{key}={quote(value, safe='')}" for key, value in given.items() if value)
    return f"{path}?{query}" if query else path
