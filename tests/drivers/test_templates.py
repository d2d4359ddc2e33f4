from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from incus_actors.drivers.base import InstanceSpec
from incus_actors.drivers.templates import (
    MARKER,
    TemplateContext,
    UnsupportedTemplateError,
    apply_pending,
    mark,
    render,
    write_inside,
)

CONTEXT = TemplateContext("create", "/etc/x", {"name": "c1"}, {"user.a": "b"}, {"color": "red"})
METADATA = """\
architecture: x86_64
templates:
  /etc/hostname: {when: [create, rename], template: hostname.tpl}
  /etc/motd: {when: [start], template: motd.tpl}
  /etc/once: {when: [create], template: motd.tpl, create_only: true}
  /etc/fancy: {when: [create], template: fancy.tpl}
"""
OWNER = (os.geteuid(), os.getegid())


@pytest.fixture
def spec(tmp_path: Path) -> InstanceSpec:
    volume = tmp_path / "volume"
    (volume / "rootfs/etc").mkdir(parents=True)
    (volume / "templates").mkdir()
    (volume / "metadata.yaml").write_text(METADATA)
    (volume / "templates/hostname.tpl").write_text("{{ container.name }}\n")
    (volume / "templates/motd.tpl").write_text("welcome to {{instance.name}} ({{ trigger }})\n")
    (volume / "templates/fancy.tpl").write_text("{% if x %}y{% endif %}\n")
    return InstanceSpec("c1", "default", tmp_path / "i", volume, tmp_path / "l")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("{{ container.name }}", "c1"),
        ("{{instance.name}}-{{- trigger }}", "c1-create"),
        ('{{ config_get("user.a", "d") }}{{ config_get("user.z", "d") }}', "bd"),
        ("{{ properties.color }}{{ properties.none }}", "red"),
        ("{{ path }}", "/etc/x"),
    ],
)
def test_expressions(text: str, result: str) -> None:
    assert render(text, CONTEXT) == result


@pytest.mark.parametrize("text", ["{% if a %}{% endif %}", "{{ secret }}", "{{ container.nothing }}", "{{ 1+1 }}"])
def test_what_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedTemplateError):
        render(text, CONTEXT)


def test_triggers(spec: InstanceSpec) -> None:
    etc = spec.rootfs / "etc"
    mark(spec.volume_dir, "create")
    (etc / "once").write_text("kept\n")
    skipped = apply_pending(spec, OWNER)
    assert (etc / "hostname").read_text() == "c1\n"
    assert (etc / "motd").read_text() == "welcome to c1 (start)\n"
    assert (etc / "once").read_text() == "kept\n"
    assert [line.partition(":")[0] for line in skipped] == ["template of /etc/fancy left out"]
    assert not (spec.volume_dir / MARKER).exists()
    (etc / "hostname").write_text("changed\n")
    assert apply_pending(spec, OWNER) == []
    assert (etc / "hostname").read_text() == "changed\n"
    mark(spec.volume_dir, "rename")
    apply_pending(replace(spec, name="c2"), OWNER)
    assert (etc / "hostname").read_text() == "c2\n"


def test_without_metadata(spec: InstanceSpec) -> None:
    (spec.volume_dir / "metadata.yaml").unlink()
    assert apply_pending(spec, OWNER) == []


def test_links_are_never_followed(spec: InstanceSpec, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hostname").write_text("host\n")
    (spec.rootfs / "etc").rmdir()
    (spec.rootfs / "etc").symlink_to(outside)
    mark(spec.volume_dir, "create")
    assert len(apply_pending(spec, OWNER)) == 4
    assert (outside / "hostname").read_text() == "host\n"
    assert sorted(entry.name for entry in outside.iterdir()) == ["hostname"]


def test_a_final_link_is_replaced_not_written_through(spec: InstanceSpec, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("host\n")
    link = spec.rootfs / "etc/hostname"
    link.symlink_to(target)
    write_inside(spec.rootfs, "/etc/hostname", "new\n", OWNER)
    assert target.read_text() == "host\n"
    assert (link.is_symlink(), link.read_text()) == (False, "new\n")


def test_mode_is_kept_and_directories_are_made(spec: InstanceSpec) -> None:
    file = spec.rootfs / "etc/f"
    file.write_text("old")
    file.chmod(0o640)
    write_inside(spec.rootfs, "/etc/f", "new", OWNER)
    assert file.stat().st_mode & 0o777 == 0o640
    write_inside(spec.rootfs, "/a/b/c", "deep", OWNER)
    assert (spec.rootfs / "a/b/c").read_text() == "deep"


@pytest.mark.parametrize("path", ["", "/", "/etc/../../x", ".."])
def test_paths_stay_inside(spec: InstanceSpec, path: str) -> None:
    with pytest.raises(UnsupportedTemplateError):
        write_inside(spec.rootfs, path, "x", OWNER)


def test_a_template_name_stays_in_its_directory(spec: InstanceSpec) -> None:
    (spec.volume_dir / "metadata.yaml").write_text(
        "templates:\n  /etc/a: {when: [create], template: ../metadata.yaml}\n  /etc/b: {when: [create], template: l}\n"
    )
    (spec.volume_dir / "templates/l").symlink_to("/etc/passwd")
    mark(spec.volume_dir, "create")
    assert len(apply_pending(spec, OWNER)) == 2
    assert list((spec.rootfs / "etc").iterdir()) == []


def test_a_marker_of_the_image_is_replaced_not_written_through(spec: InstanceSpec, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    marker = spec.volume_dir / MARKER
    marker.symlink_to(victim)
    mark(spec.volume_dir, "create")
    assert (marker.read_text(), victim.read_text()) == ("create\n", "precious")
    marker.unlink()
    os.mkfifo(marker)  # would block the daemon until somebody reads
    mark(spec.volume_dir, "create")
    assert marker.read_text() == "create\n"


def test_a_pipe_as_template_does_not_block(spec: InstanceSpec) -> None:
    template = spec.volume_dir / "templates/hostname.tpl"
    template.unlink()
    os.mkfifo(template)
    mark(spec.volume_dir, "create")
    assert any(line.startswith("template of /etc/hostname left out") for line in apply_pending(spec, OWNER))
