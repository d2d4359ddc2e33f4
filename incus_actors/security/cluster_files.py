"""The cluster certificate on disk: the one that is shown, those that may come next, those that were shown before.

Owns `cluster.crt/.key` and `cluster.next-<fingerprint>.crt/.key` of a member and says whose certificates are accepted
from other members while one is being replaced. Called by services/cluster_certificate.py and by what connects to
members. Must never trust what is neither shown here, nor waiting here, nor was shown here a moment ago.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from incus_actors.security import certificates
from incus_actors.security.certificates import KeyPair

NEXT = "cluster.next-"
STALE_S = 3600.0  #: a certificate that waited so long was never chosen
RETIRED_S = 300.0  #: others may show the old one this long after we have changed


class ClusterFiles:
    """`directory` is $INCUS_DIR."""

    def __init__(self, directory: Path, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._monotonic_s = monotonic_s
        self._retired: dict[str, float] = {}

    def shown(self) -> KeyPair | None:
        """Return cluster.crt and its key; None while standalone."""
        return certificates.load_pair(self._directory, certificates.CLUSTER)

    def waiting(self, fingerprint: str) -> KeyPair | None:
        """Return the pair of that fingerprint if it waits to be chosen here."""
        pair = certificates.load_pair(self._directory, NEXT + fingerprint)
        return pair if pair is not None and pair.fingerprint == fingerprint else None

    def find(self, fingerprint: str) -> KeyPair | None:
        """Return the pair of that fingerprint, shown or waiting."""
        shown = self.shown()
        return shown if shown is not None and shown.fingerprint == fingerprint else self.waiting(fingerprint)

    def put(self, certificate_pem: str, key_pem: str) -> str:
        """Keep a pair that may be chosen; return its fingerprint. Raises BadRequestError (no pair), OSError."""
        certificates.check_pair(certificate_pem, key_pem)
        fingerprint = certificates.fingerprint_pem(certificate_pem)
        self._forget_stale()
        certificates.write_pair(self._directory, NEXT + fingerprint, certificate_pem, key_pem)
        return fingerprint

    def drop(self, fingerprint: str) -> None:
        """Forget one that waits."""
        certificates.remove_pair(self._directory, NEXT + fingerprint)

    def choose(self, fingerprint: str) -> bool:
        """Show that one from now on; False if it isn't here. Doing it again is fine. Raises OSError."""
        shown = self.shown()
        pair = self.waiting(fingerprint)
        if pair is None:
            return shown is not None and shown.fingerprint == fingerprint
        if shown is not None and shown.fingerprint != fingerprint:
            self._retired[shown.fingerprint] = self._monotonic_s() + RETIRED_S
        certificates.write_pair(self._directory, certificates.CLUSTER, pair.certificate_pem, pair.key_pem)
        self.drop(fingerprint)
        return True

    def accepted(self) -> list[str]:
        """Return the fingerprints that another member may show us now; none while standalone."""
        shown = self.shown()
        if shown is None:
            return []
        now = self._monotonic_s()
        self._retired = {f: until for f, until in self._retired.items() if until > now}
        waiting = [path.name.removeprefix(NEXT).removesuffix(".crt") for path in self._directory.glob(f"{NEXT}*.crt")]
        return [shown.fingerprint, *sorted(waiting), *self._retired]

    def _forget_stale(self) -> None:
        oldest = time.time() - STALE_S
        for path in self._directory.glob(f"{NEXT}*.crt"):
            if path.stat().st_mtime < oldest:
                self.drop(path.name.removeprefix(NEXT).removesuffix(".crt"))
