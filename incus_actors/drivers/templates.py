"""File templates of images: hostname, hosts and the like, rendered into a root file system.

Owns the marker `apply-template` of a volume (what must be rendered at the next start) and the small part of the
template language that images use for it. Called by the instance drivers before init starts, in a worker thread;
must never follow a symbolic link: the tree belongs to the instance, we write as root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from incus_actors.drivers.base import InstanceSpec

MARKER = "apply-template"
_TEMPLATE_BYTES_MAX = 1 << 20
_EXPRESSION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_CONFIG_GET = re.compile(r"""config_get\(\s*["']([^"']*)["']\s*,\s*["']([^"']*)["']\s*\)""")


class UnsupportedTemplateError(Exception):
    """The template needs more of the language than we have; the file is left as it is."""


@dataclass(frozen=True, slots=True)
class TemplateContext:
    """What expressions may name."""

    trigger: str
    path: str
    instance: Mapping[str, str]
    config: Mapping[str, str]
    properties: Mapping[str, str] = field(default_factory=dict)


def render(text: str, context: TemplateContext) -> str:
    """Return the text with its expressions filled in. Raises UnsupportedTemplateError."""
    if "{%" in text:
        raise UnsupportedTemplateError("it has statements ({% … %})")

    def value(match: re.Match[str]) -> str:
        expression = match[1]
        if found := _CONFIG_GET.fullmatch(expression):
            return context.config.get(found[1], found[2])
        scope, _, name = expression.partition(".")
        if expression in {"trigger", "path"}:
            return context.trigger if expression == "trigger" else context.path
        if scope in {"container", "instance"} and name in context.instance:
            return context.instance[name]
        if scope == "properties" and name:
            return context.properties.get(name, "")
        raise UnsupportedTemplateError(f"the expression {expression!r} is not known")

    return _EXPRESSION.sub(value, text)


def mark(volume: Path, trigger: str) -> None:
    """Have the templates for `trigger` (create, copy, rename) rendered at the next start. Raises OSError."""
    marker = volume / MARKER
    marker.unlink(missing_ok=True)  # the image may have brought one: a link, or a pipe that nobody reads
    descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{trigger}\n")


def _open_plain(path: Path) -> int:
    """Open a file of an image for reading. Raises OSError, also for a link or anything that could block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return descriptor


def apply_pending(spec: InstanceSpec, owner: tuple[int, int]) -> list[str]:
    """Render what the marker and the start ask for; return one line per template that was left out.

    `owner`: uid and gid that files must get on disk. Blocking. Raises OSError only for the marker itself.
    """
    marker = spec.volume_dir / MARKER
    triggers = ["start"]
    with contextlib.suppress(FileNotFoundError):
        triggers.insert(0, marker.read_text().strip())
    skipped = []
    for path, template in _load(spec.volume_dir, triggers).items():
        when = template.get("when")
        trigger = next((name for name in triggers if isinstance(when, list) and name in when), None)
        if trigger is None:
            continue
        try:
            _apply_one(spec, path, template, trigger, owner)
        except (OSError, UnicodeDecodeError, UnsupportedTemplateError) as error:
            skipped.append(f"template of {path} left out: {error}")
    marker.unlink(missing_ok=True)
    return skipped


def _load(volume: Path, triggers: list[str]) -> dict[str, dict[str, object]]:
    try:
        with os.fdopen(_open_plain(volume / "metadata.yaml"), "rb") as file:
            content = file.read(_TEMPLATE_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    wanted = b"templates" in content and any(trigger.encode() in content for trigger in triggers)
    if not wanted or len(content) > _TEMPLATE_BYTES_MAX:
        return {}
    import yaml  # heavy: only when an instance has templates

    loaded = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    templates = loaded.get("templates") if isinstance(loaded, dict) else None
    return {str(path): item for path, item in (templates or {}).items() if isinstance(item, dict)}


def _apply_one(
    spec: InstanceSpec, path: str, template: Mapping[str, object], trigger: str, owner: tuple[int, int]
) -> None:
    name = str(template.get("template", ""))
    if not name or "/" in name or name.startswith("."):
        raise UnsupportedTemplateError(f"bad template name {name!r}")
    source = spec.volume_dir / "templates" / name
    with os.fdopen(_open_plain(source), "rb") as file:
        text = file.read(_TEMPLATE_BYTES_MAX).decode()
    properties = template.get("properties")
    context = TemplateContext(
        trigger,
        path,
        {
            "name": spec.name,
            "type": "container",
            "architecture": spec.architecture,
            "privileged": str(spec.privileged),
            "ephemeral": str(spec.ephemeral),
        },
        spec.config,
        {str(key): str(value) for key, value in properties.items()} if isinstance(properties, dict) else {},
    )
    write_inside(spec.rootfs, path, render(text, context), owner, create_only=template.get("create_only") is True)


def write_inside(root: Path, path: str, text: str, owner: tuple[int, int], *, create_only: bool = False) -> None:
    """Write a file below `root`, replacing it atomically and keeping its mode and owner.

    Missing directories are made. Raises OSError, also if any part of the path is a symbolic link.
    """
    parts = [part for part in path.split("/") if part and part != "."]
    if not parts or ".." in parts:
        raise UnsupportedTemplateError(f"bad path {path!r}")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    directory = os.open(root, flags)
    try:
        for part in parts[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=directory)
                os.chown(part, *owner, dir_fd=directory, follow_symlinks=False)
            below = os.open(part, flags, dir_fd=directory)
            os.close(directory)
            directory = below
        _replace(directory, parts[-1], text, owner, create_only)
    finally:
        os.close(directory)


def _replace(directory: int, name: str, text: str, owner: tuple[int, int], create_only: bool) -> None:
    mode = 0o644
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if create_only:
            return
        owner, mode = (found.st_uid, found.st_gid), found.st_mode & 0o777
    temporary = f".{name}.incus-actors"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
