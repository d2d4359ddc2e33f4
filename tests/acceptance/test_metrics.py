"""A scrape as Prometheus makes it, and `incus top`'s source, on a real cluster."""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from incus_actors.security import certificates


def families(text: str) -> dict[str, list]:
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


def scrape(url: str, pair: tuple[str, str] | None = None) -> str:
    context = ssl._create_unverified_context()  # the certificate is the cluster's own
    if pair is not None:
        context.load_cert_chain(*pair)
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.read().decode()


@pytest.fixture
def incus(cluster, incus_on):
    return incus_on(cluster.members[0])


def test_instances_and_consensus_are_measured(incus, cluster, image, tmp_path) -> None:
    member = cluster.members[0]
    incus("launch", image, "measured", "--target", member.name)
    found = families(incus("query", "--raw", f"/1.0/metrics?target={member.name}"))
    cpu = [s for s in found["incus_cpu_seconds"] if s.labels["name"] == "measured"]
    assert cpu[0].labels["project"] == "default"
    assert cpu[0].value > 0
    processes = {s.labels["name"]: s.value for s in found["incus_procs_total"]}
    assert processes["measured"] >= 1
    assert found["incus_actors_raft_term"][0].value >= 1
    lags = [families(incus("query", "--raw", f"/1.0/metrics?target={m.name}")) for m in cluster.members]
    assert sum(one["incus_actors_raft_is_leader"][0].value for one in lags) == 1
    assert sorted(len(one.get("incus_actors_raft_lag_entries", [])) for one in lags) == [0, 0, 2]
    incus("delete", "-f", "measured")

    key, certificate = tmp_path / "metrics.key", tmp_path / "metrics.crt"
    text, key_text = certificates.make_certificate("prometheus")
    certificate.write_text(text)
    key.write_text(key_text)
    incus("config", "trust", "add-certificate", str(certificate), "--type=metrics", "--name", "prometheus")
    pair = (str(certificate), str(key))
    assert "incus_actors_raft_term" in scrape(f"https://{member.https_address}/1.0/metrics", pair)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        scrape(f"https://{member.https_address}/1.0/metrics")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        scrape(f"https://{member.https_address}/1.0/instances", pair)

    incus("config", "set", f"core.metrics_address={member.address}:9101")
    own = f"https://{member.address}:9101"
    assert "incus_actors_raft_term" in scrape(f"{own}/1.0/metrics", pair)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        scrape(f"{own}/1.0", pair)
    incus("config", "set", "core.metrics_authentication=false")
    assert "incus_actors_raft_term" in scrape(f"{own}/1.0/metrics")
    incus("config", "unset", "core.metrics_authentication")
    incus("config", "unset", "core.metrics_address")
    with pytest.raises(urllib.error.URLError, match="refused"):
        scrape(f"{own}/1.0/metrics", pair)
    fingerprint = re.search(r"prometheus,metrics,,([0-9a-f]{12})", incus("config", "trust", "list", "-f", "csv"))
    assert fingerprint
    incus("config", "trust", "remove", fingerprint[1])
