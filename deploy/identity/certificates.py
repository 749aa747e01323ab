"""Certificates of our own: an authority that vouches for one server, and nobody else.

The server's name in them is always the same: whoever knows the authority needs no other proof, wherever the
server is and whatever it is called there. Programs of its machine that only know its address find that too.
"""

from __future__ import annotations

import datetime
import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

from xnai.bus.secrets import write_secret
from xnai.protocol.errors import InvalidSettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, KeyUsage

SERVER_NAME = "xnai"
_YEAR = datetime.timedelta(days=365)
_VALID, _RENEWED = 10 * _YEAR, 2 * _YEAR
_AHEAD = datetime.timedelta(days=1)  # clocks of other machines may be behind


class Certificates(NamedTuple):
    """Files in the PEM form."""

    ca: Path
    certificate: Path
    key: Path


async def own_certificates(folder: Path) -> Certificates:
    """Those in `folder`; made where they are missing, and made again before they end.

    A process of its own does it: the library takes 13 MB, which whoever asks would keep.

    Raises:
        InvalidSettings: the package that makes them is missing, or what is there is no certificate.
    """
    command = [sys.executable, "-P", "-m", "xnai.deploy.identity.certificates", str(folder)]
    done = await anyio.run_process(command, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise InvalidSettings(said[-1] if said else f"The certificates in {folder} cannot be made.")
    return _files(folder)


def _files(folder: Path) -> Certificates:
    return Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")


def make(folder: Path) -> Certificates:
    """What `own_certificates` does, here and now."""
    files = _files(folder)
    if all(file.exists() for file in files) and _left(files.certificate) > _RENEWED:
        return files
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise InvalidSettings(
            "TLS with certificates of our own needs a package: pip install 'xnai-agent-bus[tls]'"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    ca_key, key = _new_key(), _new_key()
    ca = _certificate("xnai authority", ca_key, by=None, signer=ca_key)
    certificate = _certificate(SERVER_NAME, key, by=ca, signer=ca_key)
    # The authority's key is forgotten: it has vouched for one server, and can vouch for no other.
    write_secret(files.ca, _pem(ca))
    write_secret(files.certificate, _pem(certificate))
    write_secret(files.key, _pem_of_key(key))
    return files


def _left(file: Path) -> datetime.timedelta:
    """How long a certificate is still good."""
    from cryptography import x509

    try:
        ends = x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    except ValueError as error:
        raise InvalidSettings(f"{file} is no certificate.") from error
    return ends - datetime.datetime.now(datetime.UTC)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _certificate(
    name: str, key: EllipticCurvePrivateKey, *, by: Certificate | None, signer: EllipticCurvePrivateKey
) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _AHEAD)
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=0 if by is None else None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    )
    if by is None:
        builder = builder.add_extension(_usage(signs=True), True)
    else:
        loopback = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost"), *loopback])
        purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(names, False).add_extension(purpose, False)
        builder = builder.add_extension(_usage(signs=False), True)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, signs: bool) -> KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def _pem_of_key(key: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]))
    except InvalidSettings as error:
        sys.exit(str(error))
