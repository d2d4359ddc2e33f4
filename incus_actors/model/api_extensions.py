"""The `api_extensions` that this release really has: the client refuses locally what is not in here.

Owns the list; a name goes in together with the feature and its test, never before (CONTRACT 4.1).
"""

from __future__ import annotations

from typing import Final

API_EXTENSIONS: Final[tuple[str, ...]] = (
    "etag",
    "patch",
    "storage",
    "resources",
    "resources_v2",
    "network",
    "network_state",
    "projects",
    "project_usage",
    "profiles_all_projects",
    "networks_all_projects",
    "clustering",
    "clustering_join",
    "clustering_join_token",
    "clustering_edit_roles",
    "clustering_failure_domains",
    "clustering_groups",
    "clustering_update_cert",
    "cluster_member_state",
    "certificate_update",
    "certificate_token",
    "api_filtering",
    "container_full",
    "instance_get_full",
    "instances",
    "instance_all_projects",
    "instance_create_start",
    "container_exec_user_group_cwd",
    "image_create_aliases",
    "images_all_projects",
    "operations_get_query_all_projects",
    "metadata_configuration",
    "warnings",
)
