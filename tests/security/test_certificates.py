"""Certificates have the profile that the stock client accepts (CONTRACT 1.2), and keys stay private."""

from __future__ import annotations

import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from incus_actors.errors import ApiError
from incus_actors.security import certificates


def test_profile():
    pem, _ = certificates.make_certificate("host1")
    certificate = x509.load_pem_x509_certificate(pem.encode())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["host1"]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert "CN=root@host1" in certificate.subject.rfc4514_string()


def test_load_or_create_keeps_the_first(tmp_path):
    one = certificates.load_or_create(tmp_path, certificates.SERVER, "h")
    assert certificates.load_or_create(tmp_path, certificates.SERVER, "other") == one
    for path in (one.certificate_path, one.key_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["server.crt", "server.key"]
    assert len(one.fingerprint) == 64
    assert one.fingerprint == certificates.fingerprint_pem(one.certificate_pem)
    assert "PRIVATE" not in repr(one)


def test_replace_and_remove(tmp_path):
    certificates.load_or_create(tmp_path, certificates.CLUSTER, "h")
    pem, key = certificates.make_certificate("h2")
    certificates.write_pair(tmp_path, certificates.CLUSTER, pem, key)
    loaded = certificates.load_pair(tmp_path, certificates.CLUSTER)
    assert loaded is not None
    assert loaded.certificate_pem == pem
    certificates.remove_pair(tmp_path, certificates.CLUSTER)
    assert certificates.load_pair(tmp_path, certificates.CLUSTER) is None
    certificates.remove_pair(tmp_path, certificates.CLUSTER)


def test_wrong_pairs_are_refused_and_nothing_is_written(tmp_path):
    pem, key = certificates.make_certificate("a")
    _, other_key = certificates.make_certificate("b")
    with pytest.raises(ApiError, match="does not match"):
        certificates.write_pair(tmp_path, "cluster", pem, other_key)
    with pytest.raises(ApiError, match="PEM inputs may have been switched"):
        certificates.write_pair(tmp_path, "cluster", key, pem)
    with pytest.raises(ApiError):
        certificates.write_pair(tmp_path, "cluster", "x", "y")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "garbage", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"])
def test_bad_pem(text):
    with pytest.raises(ApiError):
        certificates.fingerprint_pem(text)
