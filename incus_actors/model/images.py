"""Images as the REST API shows and takes them (CONTRACT 11, B.12).

Owns the shapes, in Incus' order of fields; used by services and rest. Must hold no behaviour.
"""

from __future__ import annotations

import msgspec
from msgspec import field

from incus_actors.model.instances import ZERO_TIME


class ImageAliasName(msgspec.Struct, kw_only=True):
    """An alias inside an image."""

    name: str
    description: str = ""


class Image(msgspec.Struct, kw_only=True):
    """One image."""

    auto_update: bool = False
    properties: dict[str, str] = {}
    public: bool = False
    expires_at: str = ZERO_TIME
    profiles: list[str] = []
    aliases: list[ImageAliasName] = []
    architecture: str = ""
    cached: bool = False
    filename: str = ""
    fingerprint: str = ""
    size: int = 0
    type: str = "container"
    created_at: str = ZERO_TIME
    last_used_at: str = ZERO_TIME
    uploaded_at: str = ZERO_TIME
    project: str = "default"


class ImageAlias(msgspec.Struct, kw_only=True):
    """`GET /1.0/images/aliases/<a>`."""

    description: str = ""
    target: str = ""
    name: str = ""
    type: str = "container"


# --- requests -----------------------------------------------------------------------------------------------


class ImagePut(msgspec.Struct, kw_only=True):
    """`PUT /1.0/images/<fp>`: the whole writable part."""

    auto_update: bool = False
    properties: dict[str, str] = {}
    public: bool = False
    expires_at: str = ZERO_TIME
    profiles: list[str] | None = None


class ImagePatch(msgspec.Struct, kw_only=True):
    """`PATCH /1.0/images/<fp>`: what is absent stays; properties are merged."""

    auto_update: bool | None = None
    properties: dict[str, str] | None = None
    public: bool | None = None
    expires_at: str | None = None
    profiles: list[str] | None = None


class ImageSource(msgspec.Struct, kw_only=True):
    """Where `POST /1.0/images` with a JSON body wants an image from."""

    type: str = ""
    mode: str = ""
    name: str = ""
    alias: str = ""
    fingerprint: str = ""
    server: str = ""
    protocol: str = ""
    url: str = ""


class ImagesPost(msgspec.Struct, kw_only=True):
    """`POST /1.0/images` with a JSON body."""

    source: ImageSource = field(default_factory=ImageSource)
    properties: dict[str, str] = {}
    public: bool = False
    filename: str = ""


class ImageAliasPost(msgspec.Struct, kw_only=True):
    """`POST /1.0/images/aliases`."""

    name: str = ""
    description: str = ""
    target: str = ""
    type: str = ""


class ImageAliasPut(msgspec.Struct, kw_only=True):
    """`PUT /1.0/images/aliases/<a>`."""

    description: str = ""
    target: str = ""


class ImageAliasPatch(msgspec.Struct, kw_only=True):
    """`PATCH /1.0/images/aliases/<a>`."""

    description: str | None = None
    target: str | None = None


class ImageAliasRename(msgspec.Struct, kw_only=True):
    """`POST /1.0/images/aliases/<a>`."""

    name: str = ""
