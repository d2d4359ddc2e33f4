"""Certificates of a member: server.crt/.key (its identity) and cluster.crt/.key (shared, shown by the listeners).

Owns making, loading, replacing and fingerprinting them; the daemon, the join and the listeners call it. A private
key must never be readable by others, nor ever be half-written.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import os
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from incus_actors.errors import BadRequestError

SERVER = "server"
CLUSTER = "cluster"
VALIDITY_DAYS = 3650
_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its key, on disk and in memory. `key_pem` is a secret: never log it."""

    certificate_path: Path
    key_path: Path
    certificate_pem: str
    key_pem: str
    fingerprint: str  #: SHA-256 of the DER form, 64 lower-case hex digits

    def __repr__(self) -> str:
        return f"KeyPair({self.certificate_path}, {self.fingerprint[:12]})"


def fingerprint_der(der: bytes) -> str:
    """Return the SHA-256 of a DER certificate as 64 hex digits."""
    return hashlib.sha256(der).hexdigest()


def pem_to_der(pem: str) -> bytes:
    """Return the DER form of the first certificate in `pem`. Raises BadRequestError if there is none."""
    start, end = pem.find(_BEGIN), pem.find(_END)
    if start < 0 or end < start:
        raise BadRequestError("Certificate must be base64 encoded PEM certificate")
    try:
        der = base64.b64decode("".join(pem[start + len(_BEGIN) : end].split()), validate=True)
    except ValueError as error:
        raise BadRequestError(f"Invalid certificate material: {error}") from error
    if not der.startswith(b"\x30"):  # an ASN.1 sequence; whoever trusts it parses it in full
        raise BadRequestError("Invalid certificate material")
    return der


def fingerprint_pem(pem: str) -> str:
    """Return the fingerprint of the first certificate in `pem`. Raises BadRequestError."""
    return fingerprint_der(pem_to_der(pem))


def der_to_pem(der: bytes) -> str:
    """Return the PEM form."""
    return ssl.DER_cert_to_PEM_cert(der)


def make_certificate(host: str, *, user: str = "root") -> tuple[str, str]:
    """Return (certificate, key) as PEM: self-signed ECDSA P-384, ten years, one DNS name (CONTRACT 1.2).

    The usage names both server and client authentication, so that members can show it to each other.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Linux Containers"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{user}@{host}"[:64]),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(host), x509.IPAddress(ip_address("127.0.0.1")), x509.IPAddress(ip_address("::1"))]
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # a joining server's clock may be a little late
        .not_valid_after(now + datetime.timedelta(days=VALIDITY_DAYS))
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA384())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), key_pem.decode()


def check_pair(certificate_pem: str, key_pem: str) -> None:
    """Return if key and certificate belong together. Raises BadRequestError otherwise (wrong order, garbage)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    if "PRIVATE KEY" in certificate_pem and _BEGIN not in certificate_pem:
        raise BadRequestError(
            "tls: failed to find certificate PEM data in certificate input, but did find a private key; "
            "PEM inputs may have been switched",
            status=500,
        )
    if "PRIVATE KEY" not in key_pem:
        raise BadRequestError("Private key must be base64 encoded PEM key")
    try:
        certificate = load_pem_x509_certificate(certificate_pem.encode())
        key = load_pem_private_key(key_pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise BadRequestError(f"tls: failed to parse certificate or key: {error}", status=500) from error
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise BadRequestError("tls: private key does not match public key", status=500)


def _paths(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.crt", directory / f"{name}.key"


def load_pair(directory: Path, name: str) -> KeyPair | None:
    """Return the pair `name`.crt/.key of `directory`, or None if either file is missing. Raises OSError."""
    certificate_path, key_path = _paths(directory, name)
    try:
        certificate_pem = certificate_path.read_text()
        key_pem = key_path.read_text()
    except FileNotFoundError:
        return None
    return KeyPair(certificate_path, key_path, certificate_pem, key_pem, fingerprint_pem(certificate_pem))


def load_or_create(directory: Path, name: str, host: str) -> KeyPair:
    """Return the pair, making it first if there is none. Raises OSError."""
    pair = load_pair(directory, name)
    return pair if pair is not None else write_pair(directory, name, *make_certificate(host))


def write_pair(directory: Path, name: str, certificate_pem: str, key_pem: str) -> KeyPair:
    """Put a pair in place, each file at once, mode 0600. Raises OSError, BadRequestError (do not match).

    The key goes first: a crash between the two leaves a pair that `load_pair` sees as incomplete or that is
    written again by whoever was interrupted.
    """
    check_pair(certificate_pem, key_pem)
    certificate_path, key_path = _paths(directory, name)
    _write_private(key_path, key_pem)
    _write_private(certificate_path, certificate_pem)
    return KeyPair(certificate_path, key_path, certificate_pem, key_pem, fingerprint_pem(certificate_pem))


def remove_pair(directory: Path, name: str) -> None:
    """Remove both files; nothing happens if they are not there."""
    for path in _paths(directory, name):
        path.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
