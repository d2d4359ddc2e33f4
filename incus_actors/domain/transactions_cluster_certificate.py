"""Builder of the transaction that replaces the cluster's certificate.

Owns its SQL; services/cluster_certificate.py proposes what this returns. Pure. The private key is never part of it.
"""

from __future__ import annotations

from incus_actors.model.transaction import Guard, Statement, Transaction

TOPIC = "cluster-certificate"


def replace_certificate(fingerprint: str, pem: str, now: str, *, before: str | None) -> Transaction:
    """Make this the certificate that every member must show.

    `before`: fingerprint of the one in the table now, None if there is none. Conflict "changed": somebody was faster.
    """
    return Transaction(
        statements=(
            Statement("DELETE FROM cluster_certificate"),
            Statement(
                "INSERT INTO cluster_certificate (id, fingerprint, certificate, updated_at) VALUES (1, ?, ?, ?)",
                (fingerprint, pem, now),
            ),
        ),
        guards=(
            Guard("SELECT fingerprint FROM cluster_certificate", (), () if before is None else ((before,),), "changed"),
        ),
        topics=(TOPIC,),
    )
