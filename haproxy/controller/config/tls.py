"""The edge's certificate: made once, self-signed, so that HTTPS works before one has been bought."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from haproxy.controller.config.files import write_atomically
from haproxy.controller.settings import EdgeSettings

# Apple's and the CA/Browser Forum's limit for a certificate that clients still accept.
LIFETIME_DAYS = 397
RENEW_BEFORE_DAYS = 14


def ensure_tls(settings: EdgeSettings) -> Path:
    """The path of the PEM bundle (certificate and key, mode 600) that HAProxy serves.

    A bundle that is there and still valid for two weeks is left alone, wherever it comes from; so is an expired one that
    was not made here: an operator's certificate is the operator's to renew.
    """
    path = settings.certificate
    if path.exists() and not _ours_and_expiring(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, _self_signed(), mode=0o600)
    return path


def _ours_and_expiring(path: Path) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        return False  # not ours to judge: `haproxy -c` will say what is wrong with it
    if certificate.issuer != _name() or certificate.subject != _name():
        return False
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left < datetime.timedelta(days=RENEW_BEFORE_DAYS)


def _name() -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "breakwater edge (self-signed)")])


def _self_signed() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.DNSName("localhost"),
        x509.DNSName(socket.gethostname()),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name())
        .issuer_name(_name())
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
