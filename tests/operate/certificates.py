"""Certificates for tests: ones that are their own authority, and authorities that sign for servers and clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1")
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """A certificate, or a chain that begins with it, and its private key, PEM files."""

    chain: Path
    private_key: Path


@dataclass(frozen=True)
class Validity:
    """When a certificate is valid, in time from now."""

    begins: timedelta = -DAY
    ends: timedelta = 2 * DAY


class Authority:
    """A certificate authority, whose own certificate is the PEM file `certificate`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(name, self._key, Validity(ends=3650 * DAY)).issuer_name(_named(name))
        usage = x509.KeyUsage(
            key_cert_sign=True,
            crl_sign=True,
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        self._own = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = folder / f"{name}.crt"
        self.certificate.write_bytes(self._own.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = (),
        uris: Sequence[str] = (),
        validity: Validity | None = None,
        with_chain: bool = False,
    ) -> Certificate:
        """Make a certificate for servers and clients, with DNS, address and URI names; it may bring its chain along."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = _with_names(_builder(name, key, validity or Validity()).issuer_name(self._own.subject), hosts, uris)
        made = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _write(self._folder, name, [made, self._own] if with_chain else [made], key)


def make_certificate(
    folder: Path, name: str = "server", *, hosts: Sequence[str] = LOOPBACK, validity: Validity | None = None
) -> Certificate:
    """Make a certificate in a folder that is its own authority, by default for localhost and 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _with_names(
        _builder("localhost", key, validity or Validity()).issuer_name(_named("localhost")), hosts, ()
    )
    made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return _write(folder, name, [made.sign(key, hashes.SHA256())], key)


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(common_name: str, key: ec.EllipticCurvePrivateKey, validity: Validity) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + validity.begins)
        .not_valid_after(now + validity.ends)
    )


def _with_names(builder: x509.CertificateBuilder, hosts: Sequence[str], uris: Sequence[str]) -> x509.CertificateBuilder:
    names = [*(_host(host) for host in hosts), *(x509.UniformResourceIdentifier(uri) for uri in uris)]
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False) if names else builder


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(folder: Path, name: str, chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> Certificate:
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    made.chain.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    made.private_key.touch(0o600)
    made.private_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made
