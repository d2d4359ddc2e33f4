"""Read of the certificate that the members must show.

Owns the query of `cluster_certificate`; services/cluster_certificate.py calls it.
"""

from __future__ import annotations

from dataclasses import dataclass

from incus_actors.state.reader import Reader


@dataclass(frozen=True, slots=True)
class WantedCertificate:
    """Without its key, which is in files only."""

    fingerprint: str
    pem: str


def wanted_certificate(db: Reader) -> WantedCertificate | None:
    """Return it, or None while that of the bootstrap was never replaced."""
    row = db.one("SELECT fingerprint, certificate FROM cluster_certificate")
    return None if row is None else WantedCertificate(row["fingerprint"], row["certificate"])
